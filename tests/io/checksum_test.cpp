// Checksums and the manifest of a folder.
#include "io/checksum.h"

#include "helpers.h"
#include "io/atomic.h"
#include "io/safetensors.h"

namespace polaron::test {
namespace {

std::uint64_t checksum_of(std::string_view text) {
  Checksum checksum;
  checksum.update(bytes_of(text));
  return checksum.value();
}

TEST(Checksum, is_xxh3_with_64_bits_and_seed_0) {
  // By the `xxhash` package of Python: xxh3_64_hexdigest.
  EXPECT_EQ(checksum_to_hex(checksum_of("")), "2d06800538d394c2");
  EXPECT_EQ(checksum_to_hex(checksum_of("polaron")), "ef94d5c9e3187a9a");
  EXPECT_EQ(checksum_to_hex(checksum_of(std::string(1000, 'a'))), "b3e7af627147db7c");
}

TEST(Checksum, does_not_depend_on_how_the_bytes_are_cut) {
  std::string text;
  for (int i = 0; i < 5000; ++i) text += static_cast<char>(i * 31 % 251);
  for (const std::size_t piece : {1u, 7u, 240u, 256u, 1024u, 4999u}) {
    Checksum checksum;
    for (std::size_t i = 0; i < text.size(); i += piece)
      checksum.update(bytes_of(std::string_view(text).substr(i, piece)));
    EXPECT_EQ(checksum.value(), checksum_of(text)) << piece;
  }
}

TEST(Checksum, hex_keeps_leading_zeros) { EXPECT_EQ(checksum_to_hex(0xab), "00000000000000ab"); }

TEST(Checksum, of_a_file_longer_than_the_buffer_covers_all_of_it) {
  const TestFolder folder;
  std::string content((std::size_t{1} << 20) * 2 + 12345, '\0');
  for (std::size_t i = 0; i < content.size(); ++i) content[i] = static_cast<char>(i * 2654435761u >> 13);
  put(folder / "a", content);
  EXPECT_EQ(digest_file(folder / "a"), (FileDigest{content.size(), checksum_of(content)}));
}

TEST(Manifest, covers_every_file_below_the_folder_and_verifies) {
  const TestFolder folder;
  std::filesystem::create_directory(folder / "optimizer");
  put(folder / "model.safetensors", "model");
  put(folder / "optimizer/momentum", "momentum");
  put(folder / "empty", "");
  put(folder / ".a.tmp-host-1-0", "a temporary");
  write_manifest(folder.path());
  const Manifest manifest = read_manifest(folder.path());
  EXPECT_EQ(manifest, (Manifest{{"empty", {0, checksum_of("")}},
                                {"model.safetensors", {5, checksum_of("model")}},
                                {"optimizer/momentum", {8, checksum_of("momentum")}}}));
  verify_manifest(folder.path());
  write_manifest(folder.path());  // the manifest does not list itself
  EXPECT_EQ(read_manifest(folder.path()), manifest);
  put(folder / "notes.txt", "a file that a person added");
  verify_manifest(folder.path());
}

TEST(Manifest, digests_that_are_known_are_trusted_and_checked_against_the_size) {
  const TestFolder folder;
  put(folder / "a", "abc");
  write_manifest(folder.path(), {{"a", {3, 77}}});
  EXPECT_EQ(read_manifest(folder.path()).at("a"), (FileDigest{3, 77}));
  EXPECT_THROW(write_manifest(folder.path(), {{"a", {4, 77}}}), std::logic_error);
  EXPECT_THROW(write_manifest(folder.path(), {{"b", {3, 77}}}), std::logic_error);
}

TEST(Manifest, every_flipped_bit_of_every_file_and_of_the_manifest_itself_is_caught) {
  const TestFolder folder;
  put(folder / "a.bin", "some bytes");
  put(folder / "b.bin", std::string(3, '\0'));
  write_manifest(folder.path());
  verify_manifest(folder.path());
  for (const char* name : {"a.bin", "b.bin", manifest_name}) {
    const std::string content = get(folder / name);
    for (std::size_t bit = 0; bit < content.size() * 8; ++bit) {
      std::string flipped = content;
      flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
      put(folder / name, flipped);
      EXPECT_THROW(verify_manifest(folder.path()), Error) << name << " bit " << bit << ": " << flipped;
    }
    put(folder / name, content);
  }
  verify_manifest(folder.path());
}

TEST(Manifest, damage_is_reported_with_the_name_of_the_file) {
  const TestFolder folder;
  put(folder / "a", "abc");
  put(folder / "b", "abc");
  write_manifest(folder.path());

  put(folder / "b", "abd");
  const std::string other = data_error([&] { verify_manifest(folder.path()); });
  EXPECT_TRUE(contains(other, "'" + (folder / "b").string() + "' has other bytes than were written"));
  EXPECT_TRUE(contains(other, checksum_to_hex(checksum_of("abd"))));
  EXPECT_TRUE(contains(other, checksum_to_hex(checksum_of("abc"))));
  put(folder / "b", "ab");
  EXPECT_TRUE(contains(data_error([&] { verify_manifest(folder.path()); }),
                       "has 2 bytes where 3 were written: it is cut short"));
  put(folder / "b", "abcd");
  EXPECT_TRUE(contains(data_error([&] { verify_manifest(folder.path()); }), "not the file that was written"));
  std::filesystem::remove(folder / "b");
  EXPECT_TRUE(
      contains(data_error([&] { verify_manifest(folder.path()); }), "'" + (folder / "b").string() + "' is missing"));
  std::filesystem::create_directory(folder / "b");
  EXPECT_TRUE(contains(data_error([&] { verify_manifest(folder.path()); }), "it is a folder"));
}

TEST(Manifest, missing_manifest_is_told_apart_from_a_damaged_one) {
  const TestFolder folder;
  EXPECT_FALSE(has_manifest(folder.path()));
  EXPECT_TRUE(contains(data_error([&] { verify_manifest(folder.path()); }), "No such file or directory"));
  put(folder / manifest_name, "");
  EXPECT_TRUE(has_manifest(folder.path()));
  EXPECT_TRUE(contains(data_error([&] { verify_manifest(folder.path()); }), "not valid JSON"));
}

TEST(Manifest, unsound_manifests_are_refused) {
  const TestFolder folder;
  put(folder / "a", "");
  const auto with_file = [](const std::string& name, const std::string& entry) {
    return R"({"algorithm":"xxh3_64","files":{")" + name + "\":" + entry + "}}";
  };
  const std::string sound = R"({"bytes":0,"xxh3_64":"2d06800538d394c2"})";
  put(folder / manifest_name, with_file("a", sound));
  verify_manifest(folder.path());
  for (const std::string& text : {std::string("[]"),
                                  std::string("{}"),
                                  std::string(R"({"algorithm":"xxh3_64"})"),
                                  std::string(R"({"algorithm":"crc32","files":{}})"),
                                  std::string(R"({"algorithm":3,"files":{}})"),
                                  std::string(R"({"algorithm":"xxh3_64","files":[]})"),
                                  std::string(R"({"algorithm":"xxh3_64","files":{},"x":1})"),
                                  with_file("../a", sound),
                                  with_file("/etc/passwd", sound),
                                  with_file("x/../../a", sound),
                                  with_file("", sound),
                                  with_file(".", sound),
                                  with_file("..", sound),
                                  with_file("a/", sound),
                                  with_file("./a", sound),
                                  with_file("a", "3"),
                                  with_file("a", R"({"bytes":0})"),
                                  with_file("a", R"({"xxh3_64":"2d06800538d394c2"})"),
                                  with_file("a", R"({"bytes":-1,"xxh3_64":"2d06800538d394c2"})"),
                                  with_file("a", R"({"bytes":"0","xxh3_64":"2d06800538d394c2"})"),
                                  with_file("a", R"({"bytes":0,"xxh3_64":"2D06800538D394C2"})"),
                                  with_file("a", R"({"bytes":0,"xxh3_64":"2d06800538d394c"})"),
                                  with_file("a", R"({"bytes":0,"xxh3_64":"02d06800538d394c2"})"),
                                  with_file("a", R"({"bytes":0,"xxh3_64":""})"),
                                  with_file("a", R"({"bytes":0,"xxh3_64":3})"),
                                  with_file("a", R"({"bytes":0,"xxh3_64":"2d06800538d394c2","x":1})")}) {
    SCOPED_TRACE(text);
    put(folder / manifest_name, text);
    EXPECT_TRUE(contains(data_error([&] { verify_manifest(folder.path()); }), "checksums.json' is damaged"));
  }
}

TEST(Manifest, of_a_folder_with_written_tensors_needs_no_second_reading) {
  const TestFolder folder;
  SafetensorsWriter writer(folder / "model.safetensors", {{"x", "F32", {3}}});
  writer.write("x", bytes_of(std::vector<float>{1, 2, 3}));
  write_manifest(folder.path(), {{"model.safetensors", writer.finish()}});
  verify_manifest(folder.path());
}

}  // namespace
}  // namespace polaron::test
