// Publishing of files and folders so that nobody ever sees half of one, not even after a power failure: everything is
// written under a temporary name beside the final one, flushed to the disk, then renamed.
//
// A temporary is named `.NAME.tmp-HOST-PID-N` (NAME the final name, HOST and PID of the writing process, N a counter)
// and is locked (flock) while its writer lives. What a killed process left is found by remove_stale_temporaries.
//
// Errors are Error(Exit::data) and name the path, the system's reason and a remedy.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "io/file.h"

namespace polaron {

// Replaces or creates the file `path`; its folder must exist. On an error the former file is as it was.
void write_file_atomically(const std::filesystem::path& path, std::string_view text);

enum class IfPresent { refuse, replace };

// A folder that is filled under a temporary name and then appears complete, or not at all:
//
//   AtomicDirectory checkpoint(run / "checkpoints" / "step-000100");
//   ... write files into checkpoint.path() ...
//   checkpoint.publish();
class AtomicDirectory {
 public:
  // Makes the empty temporary folder. The folder above `final_path` must exist.
  explicit AtomicDirectory(std::filesystem::path final_path);
  // Removes the temporary folder with all in it where it was not published.
  ~AtomicDirectory();
  AtomicDirectory(const AtomicDirectory&) = delete;
  AtomicDirectory& operator=(const AtomicDirectory&) = delete;

  const std::filesystem::path& path() const { return temporary_; }  // of the temporary folder
  const std::filesystem::path& final_path() const { return final_; }

  // Flushes every file and folder to the disk and renames. `refuse`: a final path that exists is an error. `replace`:
  // a folder that is there is exchanged for the new one in one step and removed; where the file system cannot exchange,
  // it is first renamed to `NAME.old`. Called at most once.
  void publish(IfPresent if_present = IfPresent::refuse);

 private:
  std::filesystem::path final_;
  std::filesystem::path temporary_;
  File lock_;
  bool published_ = false;
};

// Makes the symbolic link `link` point to `target`, a path relative to the link's folder so that the whole can be
// moved; a link that is there is replaced in one step. std::logic_error for an absolute target.
void point_symlink_atomically(const std::filesystem::path& link, const std::filesystem::path& target);

// Removes the temporaries in `folder` (not below it) whose writers are dead and returns their names. A temporary counts
// as abandoned when its lock is free; where it cannot be locked (a symbolic link, some network file systems), when it
// was written on this host by a process that is gone. What cannot be removed is left, without an error.
std::vector<std::string> remove_stale_temporaries(const std::filesystem::path& folder);

// Whether `name` (without folders) has the form of a temporary's name.
bool is_temporary_name(std::string_view name);

}  // namespace polaron
