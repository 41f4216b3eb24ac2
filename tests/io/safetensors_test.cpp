// Reading sound safetensors files, and writing them.
#include "io/safetensors.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "helpers.h"
#include "io/checksum.h"

namespace polaron::test {
namespace {

using Shape = std::vector<std::int64_t>;

std::vector<float> read_f32(const SafetensorsReader& reader, std::string_view name, std::size_t n) {
  std::vector<float> values(n, -99.0f);
  reader.read_f32(name, values.data(), n);
  return values;
}

TEST(Safetensors, file_of_the_python_library_reads_as_it_was_written) {
  const SafetensorsReader reader(POLARON_SOURCE_DIR "/tests/io/data/written_by_python.safetensors");
  EXPECT_EQ(reader.metadata(), (std::map<std::string, std::string>{{"format", "pt"}, {"note", "written by Python"}}));
  EXPECT_EQ(reader.names(), (std::vector<std::string>{"step", "double", "empty", "wte.weight",
                                                      "\xe5\x90\x8d\xe5\x89\x8d", "half", "tokens", "mask"}));
  EXPECT_EQ(reader.at("wte.weight").dtype, "F32");
  EXPECT_EQ(reader.at("wte.weight").shape, (Shape{2, 3}));
  EXPECT_EQ(read_f32(reader, "wte.weight", 6), (std::vector<float>{-1.0f, -0.5f, 0.0f, 0.5f, 1.0f, 1.5f}));
  EXPECT_EQ(read_f32(reader, "half", 4), (std::vector<float>{1.0f, -2.5f, 65504.0f, 0x1p-24f}));
  EXPECT_EQ(read_f32(reader, "double", 2), (std::vector<float>{1.0f / 3.0f, std::numeric_limits<float>::infinity()}));
  EXPECT_EQ(reader.at("empty").shape, (Shape{0, 4}));
  EXPECT_EQ(reader.data("empty").size(), 0u);

  std::int64_t step = 0;
  EXPECT_EQ(reader.at("step").shape, Shape{});
  reader.read("step", std::as_writable_bytes(std::span(&step, 1)));
  EXPECT_EQ(step, 1234567890123);
  std::array<std::uint16_t, 3> tokens{};
  reader.read("tokens", std::as_writable_bytes(std::span(tokens)));
  EXPECT_EQ(tokens, (std::array<std::uint16_t, 3>{0, 50256, 65535}));
  const auto mask = reader.data("mask");
  EXPECT_EQ(std::vector<std::byte>(mask.begin(), mask.end()),
            (std::vector<std::byte>{std::byte{1}, std::byte{0}, std::byte{1}}));
}

TEST(Safetensors, written_tensors_come_back_bit_for_bit) {
  const TestFolder folder;
  const std::vector<float> matrix{1.5f, -0.0f, std::numeric_limits<float>::infinity(), 1e-45f, 3.0f, -7.25f};
  const std::vector<std::uint16_t> bf16{0x3f80, 0xc000, 0x7fc0};
  const std::vector<std::int64_t> step{-42};
  const std::vector<double> doubles{0.1, -1e-300};
  const std::vector<std::uint8_t> odd{1, 2, 3, 4, 5};
  const std::map<std::string, std::string> metadata{{"format", "pt"}, {"with \"quotes\"\n", "\xc3\xa9"}};
  SafetensorsWriter writer(folder / "a.safetensors",
                           {{"odd", "U8", {5}},
                            {"bf16", "BF16", {3, 1, 1}},
                            {"matrix", "F32", {2, 3}},
                            {"step", "I64", {}},
                            {"nothing", "F32", {3, 0, 2}},
                            {"doubles", "F64", {2}}},
                           metadata);
  writer.write("step", bytes_of(step));
  writer.write("doubles", bytes_of(doubles));
  writer.write("matrix", bytes_of(matrix));
  writer.write("nothing", std::span<const std::byte>());
  writer.write("bf16", bytes_of(bf16));
  writer.write("odd", bytes_of(odd));
  const FileDigest digest = writer.finish();

  const SafetensorsReader reader(folder / "a.safetensors");
  const auto same = [&reader](std::string_view name, std::span<const std::byte> expected) {
    const auto found = reader.data(name);
    return std::equal(found.begin(), found.end(), expected.begin(), expected.end());
  };
  EXPECT_TRUE(same("matrix", bytes_of(matrix)));
  EXPECT_TRUE(same("bf16", bytes_of(bf16)));
  EXPECT_TRUE(same("step", bytes_of(step)));
  EXPECT_TRUE(same("doubles", bytes_of(doubles)));
  EXPECT_TRUE(same("odd", bytes_of(odd)));
  EXPECT_TRUE(same("nothing", {}));
  EXPECT_EQ(reader.at("nothing").shape, (Shape{3, 0, 2}));
  EXPECT_EQ(reader.at("step").shape, Shape{});
  EXPECT_EQ(reader.at("bf16").shape, (Shape{3, 1, 1}));
  EXPECT_EQ(reader.metadata(), metadata);
  EXPECT_EQ(digest, digest_file(folder / "a.safetensors"));
  EXPECT_EQ(digest.bytes, writer.file_bytes());
}

TEST(Safetensors, every_tensor_of_a_written_file_is_aligned_to_its_element) {
  const TestFolder folder;
  SafetensorsWriter writer(folder / "a", {{"x", "U8", {3}}, {"y", "F64", {1}}, {"z", "BF16", {1}}, {"w", "F32", {3}}});
  std::vector<std::string> order;
  for (const TensorInfo& tensor : writer.tensors()) {
    order.push_back(tensor.name);
    writer.write(tensor.name, std::vector<std::byte>(tensor.bytes()));
  }
  writer.finish();
  EXPECT_EQ(order, (std::vector<std::string>{"y", "w", "z", "x"}));
  const SafetensorsReader reader(folder / "a");
  for (const TensorInfo& tensor : reader.tensors()) {
    const auto address = reinterpret_cast<std::uintptr_t>(reader.data(tensor.name).data());
    EXPECT_EQ(address % safetensors_dtype_size(tensor.dtype), 0u) << tensor.name;
  }
}

TEST(Safetensors, a_large_tensor_is_written_in_pieces_without_a_copy_of_it) {
  const TestFolder folder;
  constexpr std::uint64_t elements = (std::uint64_t{9} << 20) / 4 + 3;  // two full pieces of 4 MiB and a rest
  SafetensorsWriter writer(folder / "a",
                           {{"small", "F32", {1}}, {"large", "I32", {static_cast<std::int64_t>(elements)}}});
  writer.write("small", bytes_of(std::vector<float>{1.0f}));
  std::uint64_t expected_offset = 0;
  std::size_t largest = 0;
  writer.write("large", [&](std::uint64_t offset, std::span<std::byte> piece) {
    EXPECT_EQ(offset, expected_offset);
    EXPECT_EQ(piece.size() % 4, 0u);
    for (std::size_t i = 0; i < piece.size(); i += 4) {
      const auto value = static_cast<std::uint32_t>((offset + i) / 4 * 2654435761u);
      std::memcpy(&piece[i], &value, 4);
    }
    expected_offset += piece.size();
    largest = std::max(largest, piece.size());
  });
  EXPECT_EQ(largest, std::size_t{4} << 20);
  const FileDigest digest = writer.finish();
  EXPECT_EQ(digest, digest_file(folder / "a"));

  const SafetensorsReader reader(folder / "a");
  std::vector<std::uint32_t> values(elements);
  reader.read("large", std::as_writable_bytes(std::span(values)));
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < values.size(); ++i) wrong += values[i] != static_cast<std::uint32_t>(i * 2654435761u);
  EXPECT_EQ(wrong, 0u);
}

TEST(Safetensors, file_without_tensors_is_sound) {
  const TestFolder folder;
  SafetensorsWriter(folder / "a", {}).finish();
  const SafetensorsReader reader(folder / "a");
  EXPECT_TRUE(reader.tensors().empty());
  EXPECT_TRUE(reader.metadata().empty());
}

TEST(Safetensors, writer_refuses_misuse) {
  const TestFolder folder;
  using Tensors = std::vector<TensorInfo>;
  const auto make = [&](const Tensors& tensors) { SafetensorsWriter writer(folder / "a", tensors); };
  EXPECT_THROW(make({{"a", "F32", {1}}, {"a", "F32", {1}}}), std::logic_error);
  EXPECT_THROW(make({{"__metadata__", "F32", {1}}}), std::logic_error);
  EXPECT_THROW(make({{"a", "F33", {1}}}), std::logic_error);
  EXPECT_THROW(make({{"a", "F32", {-1}}}), std::logic_error);
  EXPECT_THROW(make({{"a", "F32", {std::int64_t{1} << 32, std::int64_t{1} << 32}}}), std::logic_error);
  EXPECT_THROW(make({{"a", "U8", {std::int64_t{1} << 62}},
                     {"b", "U8", {std::int64_t{1} << 62}},
                     {"c", "U8", {std::int64_t{1} << 62}},
                     {"d", "U8", {std::int64_t{1} << 62}}}),
               std::logic_error);

  SafetensorsWriter writer(folder / "a", {{"a", "F32", {1}}, {"b", "F32", {2}}});
  const std::vector<float> one(1);
  EXPECT_THROW(writer.write("b", bytes_of(one)), std::logic_error) << "out of order";
  writer.write("a", bytes_of(one));
  EXPECT_THROW(writer.finish(), std::logic_error) << "b is missing";
  EXPECT_THROW(writer.write("b", bytes_of(one)), std::logic_error) << "too few bytes";
}

TEST(Safetensors, full_disk_is_an_error_that_names_file_and_need) {
  const TestFolder folder;
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP() << "no /dev/full";
  const std::string message = data_error([] { SafetensorsWriter writer("/dev/full", {{"a", "F32", {1000}}}); });
  EXPECT_TRUE(contains(message, "'/dev/full'"));
  EXPECT_TRUE(contains(message, "No space left on device"));
  // Header (8 + 64 bytes) and data are all still to come.
  EXPECT_TRUE(contains(message, "4072 more bytes are needed"));
  EXPECT_TRUE(contains(message, "bytes are free"));
}

TEST(Safetensors, writer_into_a_folder_that_is_not_there_names_the_path) {
  const std::string message = data_error([] { SafetensorsWriter writer("/nonexistent/a.safetensors", {}); });
  EXPECT_TRUE(contains(message, "/nonexistent/a.safetensors"));
  EXPECT_TRUE(contains(message, "No such file or directory"));
}

TEST(Safetensors, every_bf16_and_half_converts_to_the_number_it_encodes) {
  for (std::uint32_t code = 0; code < 0x10000; ++code) {
    const auto stored = static_cast<std::uint16_t>(code);
    const auto bytes = std::as_bytes(std::span(&stored, 1));
    const double sign = (code & 0x8000) != 0 ? -1.0 : 1.0;
    const auto check = [&](const char* dtype, int exponent_bits, int fraction_bits) {
      const int exponent = static_cast<int>(code >> fraction_bits) & ((1 << exponent_bits) - 1);
      const int fraction = static_cast<int>(code) & ((1 << fraction_bits) - 1);
      const int bias = (1 << (exponent_bits - 1)) - 1;
      float value = -99.0f;
      ASSERT_TRUE(convert_to_f32(dtype, bytes, &value, 1));
      if (exponent == (1 << exponent_bits) - 1) {
        ASSERT_EQ(std::isnan(value), fraction != 0) << code;
        ASSERT_EQ(std::isinf(value), fraction == 0) << code;
      } else {
        const double significand = exponent == 0 ? fraction : fraction + (1 << fraction_bits);
        const double expected = sign * std::ldexp(significand, std::max(exponent, 1) - bias - fraction_bits);
        ASSERT_EQ(static_cast<double>(value), expected) << dtype << " " << code;
      }
      ASSERT_EQ(std::signbit(value), (code & 0x8000) != 0) << dtype << " " << code;
    };
    check("F16", 5, 10);
    check("BF16", 8, 7);
  }
}

TEST(Safetensors, conversion_of_a_tensor_longer_than_the_buffer_is_complete) {
  const TestFolder folder;
  const std::size_t n = 2 * (std::size_t{1} << 18) + 17;
  std::vector<std::uint16_t> stored(n);
  for (std::size_t i = 0; i < n; ++i) stored[i] = static_cast<std::uint16_t>(i % 0x7f80);
  SafetensorsWriter writer(folder / "a", {{"x", "BF16", {static_cast<std::int64_t>(n)}}});
  writer.write("x", bytes_of(stored));
  writer.finish();
  const std::vector<float> values = read_f32(SafetensorsReader(folder / "a"), "x", n);
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < n; ++i) {
    std::uint32_t bits = 0;
    std::memcpy(&bits, &values[i], 4);
    wrong += bits != static_cast<std::uint32_t>(stored[i]) << 16;
  }
  EXPECT_EQ(wrong, 0u);
}

TEST(Safetensors, asking_for_the_wrong_tensor_names_file_and_tensor) {
  const SafetensorsReader reader(POLARON_SOURCE_DIR "/tests/io/data/written_by_python.safetensors");
  float value = 0.0f;
  EXPECT_EQ(reader.find("wpe.weight"), nullptr);
  for (const std::string& message : {data_error([&] { reader.data("wpe.weight"); }),
                                     data_error([&] { reader.read_f32("wpe.weight", &value, 1); })}) {
    EXPECT_TRUE(contains(message, "written_by_python.safetensors"));
    EXPECT_TRUE(contains(message, "\"wpe.weight\""));
  }
  const std::string size = data_error([&] { reader.read_f32("wte.weight", &value, 1); });
  EXPECT_TRUE(contains(size, "F32 [2, 3] where 1 numbers"));
  const std::string dtype = data_error([&] { reader.read_f32("step", &value, 1); });
  EXPECT_TRUE(contains(dtype, "I64 []"));
  EXPECT_TRUE(contains(data_error([&] { reader.read("step", {}); }), "has 8 bytes where 0 are expected"));
}

TEST(Safetensors, file_truncated_after_opening_is_an_error_when_copied_from) {
  const TestFolder folder;
  SafetensorsWriter writer(folder / "a", {{"x", "F32", {4}}});
  writer.write("x", bytes_of(std::vector<float>(4)));
  writer.finish();
  const SafetensorsReader reader(folder / "a");
  std::filesystem::resize_file(folder / "a", writer.file_bytes() - 1);
  const std::string message = data_error([&] { read_f32(reader, "x", 4); });
  EXPECT_TRUE(contains(message, (folder / "a").string()));
  EXPECT_TRUE(contains(message, "ends at byte " + std::to_string(writer.file_bytes() - 1)));
}

}  // namespace
}  // namespace polaron::test
