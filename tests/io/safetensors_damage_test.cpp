// Files that are no sound safetensors files: each gets an Error that names the file and what is wrong with it.
#include <numeric>

#include "helpers.h"
#include "io/safetensors.h"

namespace polaron::test {
namespace {

std::string file_with(const std::string& header, std::size_t data_bytes = 0) {
  const std::uint64_t length = header.size();
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  return file + header + std::string(data_bytes, 'x');
}

std::string entry(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
}

struct BadFile {
  const char* title;
  std::string file;
  std::string expected;  // part of the message
};

std::vector<BadFile> bad_files() {
  const auto one = [](const std::string& dtype, const std::string& shape, const std::string& offsets,
                      std::size_t data_bytes) {
    return file_with(R"({"t":)" + entry(dtype, shape, offsets) + "}", data_bytes);
  };
  const auto two = [](const std::string& a, const std::string& b, std::size_t data_bytes) {
    return file_with(R"({"a":)" + entry("U8", "[4]", a) + R"(,"b":)" + entry("U8", "[4]", b) + "}", data_bytes);
  };
  const auto text = [](const std::string& header) { return file_with(header); };
  return {
      {"empty", "", "it has 0 bytes"},
      {"seven bytes", std::string(7, '\0'), "it has 7 bytes"},
      {"header length 0", std::string(8, '\0'), "does not start with '{'"},
      {"header longer than the file", std::string("\x03\0\0\0\0\0\0\0{}", 10), "header's length as 3, but only 2"},
      {"header length of 2^64 - 1", std::string(8, '\xff') + "{}", "18446744073709551615"},
      {"Git LFS pointer", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"},
      {"a pickle", std::string("PK\3\4", 4) + std::string(100, '\0'), "header's length"},
      {"not JSON", text("{xyz}"), "not valid JSON"},
      {"unfinished JSON", text(R"({"a":)"), "not valid JSON"},
      {"trailing garbage", text("{} x"), "not valid JSON"},
      {"two objects", text("{}{}"), "not valid JSON"},
      {"byte order mark", text("\xef\xbb\xbf{}"), "does not start with '{'"},
      {"space before", text(" {}"), "does not start with '{'"},
      {"an array", text("[]"), "does not start with '{'"},
      {"comment", text("{/* */}"), "not valid JSON"},
      {"broken UTF-8", text("{\"\xff\":0}"), "not valid JSON"},
      {"NUL padding", file_with(std::string("{}\0\0", 4)), "not valid JSON"},
      {"endless nesting", text("{\"t\":" + std::string(100000, '[')), "deeper than 64"},
      {"duplicate name",
       file_with(R"({"a":)" + entry("U8", "[4]", "[0,4]") + R"(,"a":)" + entry("U8", "[4]", "[4,8]") + "}", 8),
       "\"a\" occurs twice"},
      {"duplicate name, escaped",
       file_with(R"({"a":)" + entry("U8", "[4]", "[0,4]") + R"(,"\u0061":)" + entry("U8", "[4]", "[4,8]") + "}", 8),
       "\"a\" occurs twice"},
      {"duplicate field", text(R"({"t":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}})"),
       "\"dtype\" occurs twice"},
      {"entry is a number", text(R"({"t":3})"), "tensor \"t\": its header entry is not an object"},
      {"entry is null", text(R"({"t":null})"), "not an object"},
      {"no dtype", text(R"({"t":{"shape":[0],"data_offsets":[0,0]}})"), "\"dtype\" is missing"},
      {"no shape", text(R"({"t":{"dtype":"U8","data_offsets":[0,0]}})"), "\"shape\" is missing"},
      {"no offsets", text(R"({"t":{"dtype":"U8","shape":[0]}})"), "\"data_offsets\" is missing"},
      {"extra field", text(R"({"t":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":1}})"), "fields other than"},
      {"unknown dtype", one("F31", "[1]", "[0,4]", 4), "dtype \"F31\" is not known"},
      {"dtype in lower case", one("f32", "[1]", "[0,4]", 4), "dtype \"f32\" is not known"},
      {"dtype is a number", text(R"({"t":{"dtype":32,"shape":[0],"data_offsets":[0,0]}})"),
       "\"dtype\" is not a string"},
      {"shape is a number", one("U8", "4", "[0,4]", 4), "\"shape\" is not an array"},
      {"negative size", one("U8", "[-4]", "[0,4]", 4), "\"shape\" holds something else"},
      {"fractional size", one("U8", "[4.0]", "[0,4]", 4), "\"shape\" holds something else"},
      {"size with exponent", one("U8", "[4e0]", "[0,4]", 4), "\"shape\" holds something else"},
      {"size as a string", one("U8", "[\"4\"]", "[0,4]", 4), "\"shape\" holds something else"},
      {"nested shape", one("U8", "[[4]]", "[0,4]", 4), "\"shape\" holds something else"},
      {"size above 2^64", one("U8", "[99999999999999999999]", "[0,4]", 4), "\"shape\" holds something else"},
      {"size above 2^63", one("U8", "[9223372036854775808]", "[0,4]", 4), "too large"},
      {"number too large for a double", one("U8", "[1e999]", "[0,4]", 4), "not valid JSON"},
      {"product wraps to 4", one("U8", "[4294967297,4294967297,4]", "[0,4]", 4), "too large"},
      {"product of bytes wraps to 0", one("F32", "[4611686018427387904]", "[0,0]", 0), "too large"},
      {"offsets are a number", one("U8", "[4]", "4", 4), "\"data_offsets\" is not an array of two"},
      {"one offset", one("U8", "[4]", "[4]", 4), "\"data_offsets\" is not an array of two"},
      {"three offsets", one("U8", "[4]", "[0,4,8]", 4), "\"data_offsets\" is not an array of two"},
      {"negative offset", one("U8", "[4]", "[-4,0]", 4), "\"data_offsets\" is not an array of two"},
      {"backward offsets", one("U8", "[4]", "[4,0]", 4), "[4, 0] run backwards"},
      {"too few bytes for the shape", one("F32", "[2,3]", "[0,20]", 20),
       "data_offsets [0, 20] hold 20 bytes, but shape [2, 3] of F32 needs 24"},
      {"too many bytes for the shape", one("F32", "[2,3]", "[0,28]", 28), "needs 24"},
      {"scalar without bytes", one("F32", "[]", "[0,0]", 0), "needs 4"},
      {"beyond the end", one("U8", "[8]", "[0,8]", 7), "beyond the data section of 7 bytes"},
      {"far beyond the end", one("U8", "[4]", "[18446744073709551611,18446744073709551615]", 4), "beyond the data"},
      {"hole at the start", one("U8", "[4]", "[4,8]", 8), "leave a hole from byte 0"},
      {"hole at the end", one("U8", "[4]", "[0,4]", 5), "1 bytes follow the last tensor"},
      {"data without tensors", file_with("{}", 1), "1 bytes follow the last tensor"},
      {"hole between", two("[0,4]", "[5,9]", 9), "tensor \"b\": data_offsets [5, 9] leave a hole from byte 4"},
      {"overlap", two("[0,4]", "[3,7]", 7), "tensor \"b\": data_offsets [3, 7] overlap what lies before byte 4"},
      {"the same bytes twice", two("[0,4]", "[0,4]", 4), "tensor \"b\": data_offsets [0, 4] overlap"},
      {"hole and overlap that even out", two("[0,4]", "[2,6]", 8), "overlap"},
      {"metadata is a string", text(R"({"__metadata__":"pt"})"), "\"__metadata__\" is not an object"},
      {"metadata with a number", text(R"({"__metadata__":{"format":3}})"), "the value of \"format\" is not a string"},
  };
}

TEST(SafetensorsDamage, every_malformed_file_is_refused_with_its_reason) {
  const TestFolder folder;
  for (const BadFile& bad : bad_files()) {
    SCOPED_TRACE(bad.title);
    put(folder / "bad.safetensors", bad.file);
    const std::string message = data_error([&] { SafetensorsReader reader(folder / "bad.safetensors"); });
    EXPECT_TRUE(contains(message, (folder / "bad.safetensors").string()));
    EXPECT_TRUE(contains(message, bad.expected));
    EXPECT_EQ(message,
              data_error([&] { parse_safetensors(bytes_of(bad.file), (folder / "bad.safetensors").string()); }));
  }
}

TEST(SafetensorsDamage, odd_but_sound_files_are_accepted) {
  const auto count = [](const std::string& file) { return parse_safetensors(bytes_of(file), "f").tensors.size(); };
  EXPECT_EQ(count(file_with("{}")), 0u);
  EXPECT_EQ(count(file_with("{}      ")), 0u);
  EXPECT_EQ(count(file_with(R"({"":)" + entry("U8", "[3]", "[0,3]") + "}", 3)), 1u) << "empty name, unaligned";
  EXPECT_EQ(count(file_with(R"({"a":)" + entry("F32", "[0,9223372036854775807]", "[0,0]") + "}")), 1u);
  EXPECT_EQ(count(file_with(R"({"b":)" + entry("U8", "[2]", "[1,3]") + R"(,"a":)" + entry("U8", "[]", "[0,1]") +
                                R"(,"c":)" + entry("U8", "[0]", "[1,1]") + "}",
                            3)),
            3u)
      << "order of the header is free";
}

TEST(SafetensorsDamage, every_truncation_is_refused) {
  const std::string file = get(POLARON_SOURCE_DIR "/tests/io/data/written_by_python.safetensors");
  ASSERT_GT(file.size(), 100u);
  EXPECT_EQ(parse_safetensors(bytes_of(file), "f").tensors.size(), 8u);
  for (std::size_t length = 0; length < file.size(); ++length) {
    // A copy of exactly that length, so that AddressSanitizer sees a read beyond it.
    const std::vector<char> cut(file.begin(), file.begin() + static_cast<std::ptrdiff_t>(length));
    EXPECT_THROW(parse_safetensors(bytes_of(cut), "f"), Error) << length;
  }
  EXPECT_THROW(parse_safetensors(bytes_of(file + "x"), "f"), Error);
}

TEST(SafetensorsDamage, any_flipped_header_bit_is_refused_or_gives_tensors_inside_the_file) {
  const std::string file = get(POLARON_SOURCE_DIR "/tests/io/data/written_by_python.safetensors");
  const std::uint64_t data_begin = parse_safetensors(bytes_of(file), "f").data_begin;
  std::size_t refused = 0;
  for (std::size_t bit = 0; bit < data_begin * 8; ++bit) {
    std::string flipped = file;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
    try {
      const SafetensorsHeader header = parse_safetensors(bytes_of(flipped), "f");
      std::uint64_t covered = 0;
      for (const TensorInfo& tensor : header.tensors) {
        ASSERT_EQ(tensor.begin, covered) << bit;
        ASSERT_EQ(tensor.bytes(),
                  std::accumulate(tensor.shape.begin(), tensor.shape.end(), safetensors_dtype_size(tensor.dtype),
                                  [](std::size_t product, std::int64_t size) { return product * size; }))
            << bit;
        covered = tensor.end;
      }
      ASSERT_EQ(header.data_begin + covered, flipped.size()) << bit;
    } catch (const Error&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, data_begin * 8 / 2);
}

TEST(SafetensorsDamage, what_is_not_a_file_is_refused_without_waiting) {
  const TestFolder folder;
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  EXPECT_TRUE(contains(data_error([&] { SafetensorsReader reader(folder.path()); }), "is a folder"));
  EXPECT_TRUE(contains(data_error([&] { SafetensorsReader reader(folder / "pipe"); }), "a device or pipe"));
  EXPECT_TRUE(contains(data_error([&] { SafetensorsReader reader("/dev/zero"); }), "a device or pipe"));
  EXPECT_TRUE(contains(data_error([&] { SafetensorsReader reader(folder / "missing"); }), "No such file or directory"));
}

void write_one(const std::filesystem::path& path, const std::string& name, float value) {
  SafetensorsWriter writer(path, {{name, "F32", {1}}});
  writer.write(name, bytes_of(std::vector<float>{value}));
  writer.finish();
}

TEST(SafetensorsFolder, finds_tensors_across_the_files_of_an_index) {
  const TestFolder folder;
  write_one(folder / "model-00001-of-00002.safetensors", "a", 1.0f);
  write_one(folder / "model-00002-of-00002.safetensors", "b", 2.0f);
  put(folder / "model.safetensors.index.json",
      R"({"metadata":{"total_size":8},"weight_map":{"b":"model-00002-of-00002.safetensors",
          "a":"model-00001-of-00002.safetensors"}})");
  const SafetensorsFolder checkpoint(folder.path());
  EXPECT_EQ(checkpoint.names(), (std::vector<std::string>{"a", "b"}));
  float value = 0.0f;
  checkpoint.read_f32("a", &value, 1);
  EXPECT_EQ(value, 1.0f);
  checkpoint.read_f32("b", &value, 1);
  EXPECT_EQ(value, 2.0f);
  EXPECT_EQ(checkpoint.file_of("b").path().filename(), "model-00002-of-00002.safetensors");
  EXPECT_EQ(checkpoint.find("c"), nullptr);
  const std::string message = data_error([&] { checkpoint.at("c"); });
  EXPECT_TRUE(contains(message, folder.path().string()));
  EXPECT_TRUE(contains(message, "\"c\""));

  // The single file comes first where there are both, as in transformers.
  write_one(folder / "model.safetensors", "c", 3.0f);
  EXPECT_EQ(SafetensorsFolder(folder.path()).names(), std::vector<std::string>{"c"});
}

TEST(SafetensorsFolder, unsound_indices_are_refused) {
  const TestFolder folder;
  write_one(folder / "x.safetensors", "a", 1.0f);
  const auto index = folder / "model.safetensors.index.json";
  const std::vector<std::pair<std::string, std::string>> cases{
      {"", "not valid JSON"},
      {"[]", "no object \"weight_map\""},
      {"{}", "no object \"weight_map\""},
      {R"({"weight_map":[]})", "no object \"weight_map\""},
      {R"({"weight_map":{"a":1}})", "tensor \"a\" is not a string"},
      {R"({"weight_map":{"a":"../x.safetensors"}})", "\"../x.safetensors\" of tensor \"a\" is not the name of a file"},
      {R"({"weight_map":{"a":"/etc/passwd"}})", "is not the name of a file"},
      {R"({"weight_map":{"a":".."}})", "is not the name of a file"},
      {R"({"weight_map":{"a":""}})", "is not the name of a file"},
      {R"({"weight_map":{"a":"x.safetensors\u0000"}})", "is not the name of a file"},
      {R"({"weight_map":{"a":"x.safetensors","a":"x.safetensors"}})", "occurs twice"},
      {R"({"weight_map":{"b":"x.safetensors"}})", "tensor \"b\" is not in \"x.safetensors\""},
      {R"({"weight_map":{"a":"y.safetensors"}})", "y.safetensors': No such file"},
  };
  for (const auto& [text, expected] : cases) {
    put(index, text);
    const std::string message = data_error([&] { SafetensorsFolder checkpoint(folder.path()); });
    EXPECT_TRUE(contains(message, folder.path().string()));
    EXPECT_TRUE(contains(message, expected));
  }
}

TEST(SafetensorsFolder, folder_without_a_model_says_what_to_do) {
  const TestFolder folder;
  EXPECT_TRUE(contains(data_error([&] { SafetensorsFolder c(folder.path()); }), "holds neither model.safetensors nor"));
  EXPECT_TRUE(contains(data_error([&] { SafetensorsFolder c(folder / "x"); }), "does not exist"));
  put(folder / "pytorch_model.bin", "");
  EXPECT_TRUE(contains(data_error([&] { SafetensorsFolder c(folder.path()); }), "safe_serialization"));
}

}  // namespace
}  // namespace polaron::test
