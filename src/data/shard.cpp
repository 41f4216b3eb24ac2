#include "data/shard.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <glob.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "base/error.h"

namespace polaron {
namespace {

static_assert(std::endian::native == std::endian::little, "shards are little-endian and are read without conversion");

constexpr std::size_t header_bytes = 256 * sizeof(std::int32_t);
constexpr const char* remedy = "Make shards with data/prepare_text.py, or see data/README.md for the format.";

struct Form {
  std::int32_t magic;
  std::int32_t version;
  int bytes_per_token;
};
constexpr Form forms[] = {{20240520, 1, 2}, {20240801, 7, 4}};

[[noreturn]] void fail(const std::string& message) { throw Error(Exit::data, message); }

std::string last_system_error() { return std::strerror(errno); }

class FileDescriptor {
 public:
  explicit FileDescriptor(const std::string& path) : value_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {}
  ~FileDescriptor() {
    if (value_ >= 0) ::close(value_);
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return value_; }

 private:
  int value_;
};

std::int32_t header_word(const std::byte* data, int index) {
  std::int32_t word;
  std::memcpy(&word, data + index * sizeof word, sizeof word);
  return word;
}

const Form& checked_form(const std::string& path, std::int32_t magic, std::int32_t version) {
  const auto* form =
      std::find_if(std::begin(forms), std::end(forms), [&](const Form& candidate) { return candidate.magic == magic; });
  if (form == std::end(forms)) {
    fail(
        fmt::format("{}: the number at offset 0 is {}, where a shard has 20240520 (uint16 tokens) or 20240801 (uint32 "
                    "tokens), so this is not a token shard. {}",
                    path, magic, remedy));
  }
  if (version != form->version) {
    fail(fmt::format("{}: the format version at offset 4 is {}; this program reads version {} of magic {}. {}", path,
                     version, form->version, magic, remedy));
  }
  return *form;
}

}  // namespace

Shard::Shard(std::string path) : path_(std::move(path)) {
  const FileDescriptor file(path_);
  if (file.get() < 0) fail(fmt::format("{}: cannot be opened: {}.", path_, last_system_error()));
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) fail(fmt::format("{}: cannot be examined: {}.", path_, last_system_error()));
  if (!S_ISREG(status.st_mode)) {
    fail(
        fmt::format("{}: is not a regular file. Give a pattern of shard files, e.g. '{}/train_*.bin' for those in a "
                    "folder that are there to train on.",
                    path_, path_));
  }
  const auto size = static_cast<std::size_t>(status.st_size);
  if (size < header_bytes) {
    fail(fmt::format("{}: the file ends at offset {}, within the {}-byte header that a shard starts with. {}", path_,
                     size, header_bytes, remedy));
  }
  void* mapping = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, file.get(), 0);
  if (mapping == MAP_FAILED) fail(fmt::format("{}: cannot be mapped into memory: {}.", path_, last_system_error()));
  data_ = static_cast<const std::byte*>(mapping);
  bytes_ = size;
  try {
    const Form& form = checked_form(path_, header_word(data_, 0), header_word(data_, 1));
    tokens_ = header_word(data_, 2);
    bytes_per_token_ = form.bytes_per_token;
    if (tokens_ < 0) fail(fmt::format("{}: the token count at offset 8 is negative ({}). {}", path_, tokens_, remedy));
    const auto expected = header_bytes + static_cast<std::size_t>(tokens_) * static_cast<std::size_t>(bytes_per_token_);
    if (bytes_ < expected) {
      fail(fmt::format(
          "{}: truncated: the header promises {} tokens, which end at offset {}, but the file ends at offset "
          "{} ({} bytes are missing). Copy or prepare it again.",
          path_, tokens_, expected, bytes_, expected - bytes_));
    }
    if (bytes_ > expected) {
      fail(fmt::format(
          "{}: {} bytes follow the {} tokens that the header promises, from offset {} on. Copy or prepare it "
          "again.",
          path_, bytes_ - expected, tokens_, expected));
    }
  } catch (...) {
    unmap();
    throw;
  }
}

Shard::~Shard() { unmap(); }

Shard::Shard(Shard&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      tokens_(std::exchange(other.tokens_, 0)),
      bytes_per_token_(other.bytes_per_token_) {}

Shard& Shard::operator=(Shard&& other) noexcept {
  if (this != &other) {
    unmap();
    path_ = std::move(other.path_);
    data_ = std::exchange(other.data_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
    tokens_ = std::exchange(other.tokens_, 0);
    bytes_per_token_ = other.bytes_per_token_;
  }
  return *this;
}

void Shard::unmap() noexcept {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), bytes_);
  data_ = nullptr;
}

void Shard::read(std::int64_t position, std::span<std::int32_t> out) const {
  const auto count = static_cast<std::int64_t>(out.size());
  if (position < 0 || position > tokens_ || count > tokens_ - position) {
    throw std::logic_error(
        fmt::format("tokens [{}, {}) of {}, which holds {}", position, position + count, path_, tokens_));
  }
  if (count == 0) return;
  const std::byte* source = data_ + byte_offset(position);
  if (bytes_per_token_ == 4) {
    std::memcpy(out.data(), source, out.size() * sizeof(std::int32_t));
  } else {
    const auto* tokens = reinterpret_cast<const std::uint16_t*>(source);  // header and tokens keep it aligned
    std::copy(tokens, tokens + count, out.begin());
  }
}

std::int64_t Shard::byte_offset(std::int64_t position) const {
  return static_cast<std::int64_t>(header_bytes) + position * bytes_per_token_;
}

std::vector<std::string> expand_pattern(const std::string& pattern) {
  glob_t matches{};
  const int result = ::glob(pattern.c_str(), GLOB_NOSORT | GLOB_BRACE | GLOB_TILDE, nullptr, &matches);
  std::vector<std::string> paths(matches.gl_pathv, matches.gl_pathv + matches.gl_pathc);
  ::globfree(&matches);
  if (result != 0 && result != GLOB_NOMATCH) fail(fmt::format("'{}': the pattern could not be expanded.", pattern));
  if (paths.empty()) {
    fail(fmt::format("'{}': no file matches. Check the path, or make shards with data/prepare_text.py.", pattern));
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

std::vector<Shard> open_shards(const std::string& pattern) {
  std::vector<Shard> shards;
  for (auto& path : expand_pattern(pattern)) shards.emplace_back(std::move(path));
  return shards;
}

}  // namespace polaron
