// Opening libpolaron_cuda.so, with and without what it needs.
#include "train/cuda_library.h"

#include <gtest/gtest.h>

#include <string>

#include "library_file.h"
#include "support/errors.h"

namespace polaron::test {
namespace {

std::string error_of_opening(const std::string& path) {
  return error_of(Exit::device, [&] { open_cuda_library(path); });
}

TEST(CudaLibrary, that_is_not_there_is_named) {
  expect_parts(error_of_opening("/nowhere/libpolaron_cuda.so"), {"/nowhere/libpolaron_cuda.so", "--device cpu"});
}

TEST(CudaLibrary, that_is_no_library_gives_the_loaders_reason) {
  expect_parts(error_of_opening(POLARON_SOURCE_DIR "/README.md"), {"cannot be loaded", "README.md"});
}

TEST(CudaLibrary, of_another_version_is_refused) {
  for (const char* path : {POLARON_LIBRARY_WITHOUT_ENTRY, POLARON_LIBRARY_OF_ANOTHER_VERSION}) {
    expect_parts(error_of_opening(path), {path, "another version"});
  }
}

TEST(CudaLibrary, of_this_build_opens_without_a_driver_and_gives_a_backend_or_the_reason_why_not) {
  const CudaLibrary library = open_cuda_library(cuda_library_file());
  try {
    EXPECT_EQ(library.make_backend(0)->device().info().kind, "cuda");
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Exit::device);
    EXPECT_TRUE(contains(error.what(), "cudaGetDeviceCount"));
  }
}

}  // namespace
}  // namespace polaron::test
