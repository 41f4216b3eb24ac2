// Files and folders appear complete or not at all.
#include "io/atomic.h"

#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <sched.h>

#include <functional>

#include "helpers.h"
#include "io/safetensors.h"

namespace polaron::test {
namespace {

namespace fs = std::filesystem;
using Names = std::vector<std::string>;

// What the child process of a test reports by its exit status.
constexpr int skipped = 77;

// Runs `action` in a child process, so that limits, mounts and deaths stay there; its exit status, or 128 + signal.
int in_child(const std::function<int()>& action) {
  const pid_t child = ::fork();
  if (child == 0) {
    int status = 99;
    try {
      status = action();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "child: %s\n", error.what());
    }
    ::_exit(status);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

TEST(AtomicFile, is_created_and_replaced_and_leaves_no_temporary) {
  const TestFolder folder;
  write_file_atomically(folder / "a.json", "first");
  EXPECT_EQ(get(folder / "a.json"), "first");
  write_file_atomically(folder / "a.json", std::string("se\0cond", 7));
  EXPECT_EQ(get(folder / "a.json"), std::string("se\0cond", 7));
  write_file_atomically(folder / "empty", "");
  EXPECT_EQ(folder.names(), (Names{"a.json", "empty"}));
}

TEST(AtomicFile, relative_path_without_a_folder_works) {
  const TestFolder folder;
  const fs::path before = fs::current_path();
  fs::current_path(folder.path());
  write_file_atomically("a", "text");
  { AtomicDirectory("d").publish(); }
  point_symlink_atomically("l", "d");
  fs::current_path(before);
  EXPECT_EQ(folder.names(), (Names{"a", "d", "l"}));
}

TEST(AtomicFile, failure_keeps_the_former_file_and_removes_the_temporary) {
  const TestFolder folder;
  put(folder / "a", "former");
  // A limit on file sizes makes a write fail halfway, like a full disk does, without needing one.
  const int status = in_child([&] {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{1000, 1000};
    if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) return skipped;
    const std::string message = data_error([&] { write_file_atomically(folder / "a", std::string(5000, 'x')); });
    return contains(message, (folder / "a").string()) && contains(message, "File too large") ? 0 : 1;
  });
  if (status == skipped) GTEST_SKIP() << "cannot limit file sizes";
  EXPECT_EQ(status, 0);
  EXPECT_EQ(get(folder / "a"), "former");
  EXPECT_EQ(folder.names(), Names{"a"});
}

TEST(AtomicFile, errors_name_path_reason_and_remedy) {
  const TestFolder folder;
  const std::string missing = data_error([&] { write_file_atomically(folder / "no/a", "x"); });
  EXPECT_TRUE(contains(
      missing, "cannot create '" + (folder / "no/a").string() + "': No such file or directory. Check the path."));
  fs::create_directory(folder / "d");
  const std::string is_folder = data_error([&] { write_file_atomically(folder / "d", "x"); });
  EXPECT_TRUE(contains(is_folder, "Is a directory"));
  put(folder / "f", "");
  EXPECT_TRUE(contains(data_error([&] { write_file_atomically(folder / "f/a", "x"); }), "Not a directory"));
  EXPECT_TRUE(contains(data_error([&] { AtomicDirectory d(folder / "no/d"); }), "No such file or directory"));
  EXPECT_EQ(folder.names(), (Names{"d", "f"}));
}

TEST(AtomicFile, read_only_folder_is_reported_with_its_remedy) {
  const TestFolder folder;
  fs::create_directory(folder / "locked");
  fs::permissions(folder.path(), fs::perms::all);
  fs::permissions(folder / "locked",
                  fs::perms::owner_read | fs::perms::owner_exec | fs::perms::others_read | fs::perms::others_exec);
  const int status = in_child([&] {
    if (::geteuid() == 0 && ::setuid(65534) != 0) return skipped;  // root may write anywhere
    const std::string file = data_error([&] { write_file_atomically(folder / "locked/a", "x"); });
    const std::string directory = data_error([&] { AtomicDirectory made(folder / "locked/d"); });
    const std::string remedy = "Permission denied. Check the permissions";
    return contains(file, remedy) && contains(file, (folder / "locked/a").string()) && contains(directory, remedy) ? 0
                                                                                                                   : 1;
  });
  if (status == skipped) GTEST_SKIP() << "cannot give up root's rights";
  EXPECT_EQ(status, 0);
}

TEST(AtomicDirectory, appears_complete_on_publish_and_not_before) {
  const TestFolder folder;
  {
    AtomicDirectory checkpoint(folder / "step-1");
    put(checkpoint.path() / "a", "content");
    fs::create_directory(checkpoint.path() / "sub");
    put(checkpoint.path() / "sub/b", "more");
    EXPECT_FALSE(fs::exists(folder / "step-1"));
    EXPECT_EQ(checkpoint.path().parent_path(), folder.path()) << "a rename must not cross file systems";
    checkpoint.publish();
    EXPECT_EQ(get(folder / "step-1/a"), "content");
    EXPECT_THROW(checkpoint.publish(), std::logic_error);
  }
  EXPECT_EQ(get(folder / "step-1/sub/b"), "more");
  EXPECT_EQ(folder.names(), Names{"step-1"});
}

TEST(AtomicDirectory, exception_while_writing_leaves_nothing) {
  const TestFolder folder;
  const auto interrupted = [&] {
    AtomicDirectory checkpoint(folder / "step-1");
    put(checkpoint.path() / "a", "content");
    throw std::runtime_error("interrupted");
  };
  EXPECT_THROW(interrupted(), std::runtime_error);
  EXPECT_EQ(folder.names(), Names{});
}

TEST(AtomicDirectory, killed_writer_leaves_no_final_folder_and_its_leftover_is_found) {
  const TestFolder folder;
  const int status = in_child([&] {
    AtomicDirectory checkpoint(folder / "step-1");
    put(checkpoint.path() / "a", "content");
    ::kill(::getpid(), SIGKILL);
    return 0;
  });
  EXPECT_EQ(status, 128 + SIGKILL);
  EXPECT_FALSE(fs::exists(folder / "step-1"));
  const Names left = folder.names();
  ASSERT_EQ(left.size(), 1u);
  EXPECT_TRUE(is_temporary_name(left[0])) << left[0];
  EXPECT_EQ(remove_stale_temporaries(folder.path()), left);
  EXPECT_EQ(folder.names(), Names{});
}

TEST(AtomicDirectory, existing_target_is_refused_unless_it_is_to_be_replaced) {
  const TestFolder folder;
  fs::create_directory(folder / "d");
  for (const bool is_empty : {true, false}) {
    if (!is_empty) put(folder / "d/former", "former");
    AtomicDirectory directory(folder / "d");
    put(directory.path() / "new", "new");
    const std::string message = data_error([&] { directory.publish(); });
    EXPECT_TRUE(contains(message, "cannot publish '" + (folder / "d").string() + "': File exists"));
  }
  EXPECT_EQ(get(folder / "d/former"), "former");
  EXPECT_EQ(folder.names(), Names{"d"});

  AtomicDirectory replacement(folder / "d");
  put(replacement.path() / "new", "new");
  replacement.publish(IfPresent::replace);
  EXPECT_EQ(get(folder / "d/new"), "new");
  EXPECT_FALSE(fs::exists(folder / "d/former"));
  EXPECT_EQ(folder.names(), Names{"d"});

  put(folder / "f", "a file");
  AtomicDirectory over_a_file(folder / "f");
  EXPECT_TRUE(contains(data_error([&] { over_a_file.publish(IfPresent::replace); }), "Not a directory"));
  EXPECT_EQ(get(folder / "f"), "a file");
}

TEST(AtomicDirectory, two_of_one_name_do_not_disturb_each_other) {
  const TestFolder folder;
  AtomicDirectory first(folder / "d/");
  AtomicDirectory second(folder / "d");
  EXPECT_NE(first.path(), second.path());
  first.publish();
  EXPECT_THROW(second.publish(), Error);
}

// The bad-input case of a full disk: the write fails in the middle, the folder does not appear, the former one stays.
int fill_disk(const fs::path& disk) {
  AtomicDirectory former(disk / "step-1");
  put(former.path() / "a", "former");
  former.publish();
  std::string message;
  {
    AtomicDirectory checkpoint(disk / "step-2");
    message = data_error([&] {
      constexpr std::int64_t elements = 1 << 20;  // 4 MiB on a disk of 1 MiB
      SafetensorsWriter writer(checkpoint.path() / "model.safetensors", {{"x", "F32", {elements}}});
      writer.write(
          "x", [](std::uint64_t, std::span<std::byte> piece) { std::fill(piece.begin(), piece.end(), std::byte{1}); });
    });
  }
  const auto available = free_bytes(disk);
  const bool right = contains(message, "model.safetensors") && contains(message, "No space left on device") &&
                     contains(message, "more bytes are needed, 0 bytes are free") &&
                     get(disk / "step-1/a") == "former" && !fs::exists(disk / "step-2") && available &&
                     *available > 500000 && std::distance(fs::directory_iterator(disk), fs::directory_iterator()) == 1;
  if (!right) std::fprintf(stderr, "child: %s\n", message.c_str());
  return right ? 0 : 1;
}

TEST(AtomicDirectory, full_disk_leaves_the_former_folder_and_no_half_of_the_new_one) {
  const TestFolder folder;
  const int status = in_child([&] {
    // A mount that only this child sees; root may make one, others where the system allows user namespaces.
    if (::unshare(CLONE_NEWNS) != 0) {
      const std::string user = std::to_string(::geteuid()), group = std::to_string(::getegid());
      if (::unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) return skipped;
      put("/proc/self/setgroups", "deny");
      put("/proc/self/uid_map", "0 " + user + " 1");
      put("/proc/self/gid_map", "0 " + group + " 1");
    }
    if (::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return skipped;
    if (::mount("tmpfs", folder.path().c_str(), "tmpfs", 0, "size=1m") != 0) return skipped;
    return fill_disk(folder.path());
  });
  if (status == skipped) GTEST_SKIP() << "no right to mount a small disk";
  EXPECT_EQ(status, 0);
}

TEST(Symlink, is_made_and_replaced_and_stays_relative) {
  const TestFolder folder;
  fs::create_directory(folder / "step-1");
  fs::create_directory(folder / "step-2");
  point_symlink_atomically(folder / "latest", "step-1");
  EXPECT_EQ(fs::read_symlink(folder / "latest"), "step-1");
  point_symlink_atomically(folder / "latest", "step-2");
  EXPECT_EQ(fs::read_symlink(folder / "latest"), "step-2");
  EXPECT_EQ(folder.names(), (Names{"latest", "step-1", "step-2"}));
  EXPECT_THROW(point_symlink_atomically(folder / "latest", folder / "step-1"), std::logic_error);
}

TEST(Symlink, never_replaces_what_is_not_a_link) {
  const TestFolder folder;
  put(folder / "latest", "a file of somebody");
  EXPECT_TRUE(
      contains(data_error([&] { point_symlink_atomically(folder / "latest", "step-1"); }), "is not a symbolic link"));
  EXPECT_EQ(get(folder / "latest"), "a file of somebody");
  EXPECT_EQ(folder.names(), Names{"latest"});
}

TEST(StaleTemporaries, those_of_living_writers_and_all_other_files_stay) {
  const TestFolder folder;
  AtomicDirectory alive(folder / "alive");
  const Names others{".hidden", ".x.tmp", ".x.tmp-", ".x.tmp-host-1", "x.tmp-host-1-0", ".x.tmp-host-one-0"};
  for (const auto& name : others) put(folder / name, "");
  const Names before = folder.names();
  EXPECT_EQ(remove_stale_temporaries(folder.path()), Names{});
  EXPECT_EQ(folder.names(), before);
}

TEST(StaleTemporaries, an_abandoned_one_goes_even_if_its_process_number_is_in_use_again) {
  const TestFolder folder;
  // In containers every run may have the same process number: what counts is the lock, which nobody holds.
  fs::path name;
  { name = AtomicDirectory(folder / "d").path(); }
  fs::create_directory(name);
  put(name / "a", "left behind");
  EXPECT_EQ(remove_stale_temporaries(folder.path()), Names{name.filename().string()});
  EXPECT_EQ(folder.names(), Names{});
}

TEST(StaleTemporaries, a_link_goes_only_when_its_process_is_gone) {
  const TestFolder folder;
  std::string mine;
  { mine = AtomicDirectory(folder / "latest").path().filename().string(); }  // .latest.tmp-HOST-PID-0
  const std::string host_part = mine.substr(0, mine.rfind('-', mine.rfind('-') - 1) + 1);
  int dead = 0;
  if (const pid_t child = ::fork(); child == 0) {
    ::_exit(0);
  } else {
    dead = child;
    ::waitpid(child, nullptr, 0);
  }
  const std::string gone = host_part + std::to_string(dead) + "-0";
  fs::create_symlink("x", folder / mine);
  fs::create_symlink("x", folder / gone);
  fs::create_symlink("x", folder / (".latest.tmp-another.host-" + std::to_string(dead) + "-0"));
  EXPECT_EQ(remove_stale_temporaries(folder.path()), Names{gone});
  EXPECT_EQ(folder.names().size(), 2u);
}

TEST(StaleTemporaries, folder_that_is_not_there_has_none) {
  EXPECT_EQ(remove_stale_temporaries("/nonexistent"), Names{});
}

TEST(TemporaryName, is_recognised_whatever_the_names_in_it) {
  EXPECT_TRUE(is_temporary_name(".latest.tmp-my-host-01-4711-0"));
  EXPECT_TRUE(is_temporary_name(".a.tmp-b.tmp-h-1-2"));
  for (const char* name : {"", ".", "..", "a", ".a", ".tmp-h-1-2", "a.tmp-h-1-2", ".a.tmp-h-1-", ".a.tmp-h--2",
                           ".a.tmp--1-2", ".a.tmp-1-2", ".a.tmp-h-x-2", ".a.tmp-h-1-2x", ".a.tmp-h-99999999999-2"}) {
    EXPECT_FALSE(is_temporary_name(name)) << name;
  }
}

TEST(FreeBytes, are_those_of_the_nearest_folder_that_exists) {
  const TestFolder folder;
  const auto here = free_bytes(folder.path());
  const auto below = free_bytes(folder / "not/yet/there");
  ASSERT_TRUE(here && below);
  EXPECT_GT(*here, 0u);
  // Other programs write meanwhile: the two agree but for that.
  EXPECT_NEAR(static_cast<double>(*here), static_cast<double>(*below), 1e9);
}

}  // namespace
}  // namespace polaron::test
