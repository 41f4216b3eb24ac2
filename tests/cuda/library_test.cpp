// Opening libpolaron_cuda.so, with and without what it needs.
#include "train/cuda_library.h"

#include <gtest/gtest.h>

#include <string>

#include "base/error.h"

namespace polaron::test {
namespace {

std::string message_of_opening(const std::string& path) {
  try {
    open_cuda_library(path);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Exit::device);
    return error.what();
  }
  return "opened";
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST(CudaLibrary, that_is_not_there_is_named) {
  const std::string message = message_of_opening("/nowhere/libpolaron_cuda.so");
  EXPECT_TRUE(has(message, "/nowhere/libpolaron_cuda.so") && has(message, "--device cpu")) << message;
}

TEST(CudaLibrary, that_is_no_library_gives_the_loaders_reason) {
  const std::string message = message_of_opening(POLARON_SOURCE_DIR "/README.md");
  EXPECT_TRUE(has(message, "cannot be loaded") && has(message, "README.md")) << message;
}

TEST(CudaLibrary, of_another_version_is_refused) {
  for (const char* path : {POLARON_LIBRARY_WITHOUT_ENTRY, POLARON_LIBRARY_OF_ANOTHER_VERSION}) {
    const std::string message = message_of_opening(path);
    EXPECT_TRUE(has(message, path) && has(message, "another version")) << message;
  }
}

TEST(CudaLibrary, of_this_build_opens_without_a_driver_and_gives_a_backend_or_the_reason_why_not) {
  const CudaLibrary library = open_cuda_library(POLARON_CUDA_LIBRARY);
  try {
    EXPECT_EQ(library.make_backend(0)->device().info().kind, "cuda");
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), Exit::device);
    EXPECT_TRUE(has(error.what(), "cudaGetDeviceCount")) << error.what();
  }
}

}  // namespace
}  // namespace polaron::test
