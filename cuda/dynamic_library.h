// A library of NVIDIA's that is opened at run time: the backend loads, and says what is missing, on machines without
// it.
#pragma once

#include <string>
#include <vector>

namespace polaron::cuda {

// What messages say: the library's name, and sentences for the user who lacks it.
struct LibraryName {
  const char* name;
  const char* remedy;
};

// Where a library may be, in the order to try: wherever the loader finds `file`, and the folder of the toolkit that
// this was built with, for machines that build and run.
std::vector<std::string> library_files(const std::string& file);

// Stays open for good: functions that were found are valid for as long as the process runs.
class DynamicLibrary {
 public:
  // The first of `files` that the loader opens. Throws Error(Exit::device) with the loader's reason for each where
  // there is none.
  DynamicLibrary(const LibraryName& name, const std::vector<std::string>& files);
  // A stand-in within this program; find_symbol gives null for what it lacks.
  DynamicLibrary(const LibraryName& name, void* (*find_symbol)(const char* symbol));

  // function = that of the library. Throws Error(Exit::device) where the library lacks it.
  template <class Function>
  void find(Function*& function, const char* symbol) const {
    function = reinterpret_cast<Function*>(address_of(symbol));
  }

 private:
  void* address_of(const char* symbol) const;

  LibraryName name_;
  void* library_ = nullptr;
  void* (*find_symbol_)(const char* symbol) = nullptr;  // of a stand-in
};

}  // namespace polaron::cuda
