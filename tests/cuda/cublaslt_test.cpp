// Opening cuBLASLt, and the stand-in beside the library itself, as far as that can be had without a device.
#include "cuda/cublaslt.h"

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <array>
#include <string>
#include <vector>

#include "support/errors.h"

namespace polaron::test {
namespace {

TEST(CublasLt, that_cannot_be_loaded_is_named_with_the_loaders_reason) {
  expect_parts(error_of(Exit::device, [] { cuda::open_cublaslt("libnowhere.so.13"); }),
               {"cuBLASLt cannot be loaded", "libnowhere.so.13", "--device cpu"});
}

TEST(CublasLt, that_lacks_a_function_is_refused) {
  expect_parts(error_of(Exit::device, [] { cuda::open_cublaslt(POLARON_LIBRARY_WITHOUT_ENTRY); }),
               {"cuBLASLt lacks the function cublasLtCreate"});
}

// What each attribute says to values of 1, 2, 4, 8 and 16 bytes.
using Answers = std::vector<cublasStatus_t>;

Answers answers_of(const cuda::CublasLt& lt) {
  Answers answers;
  const std::array<std::byte, 16> zeros{};
  const auto ask = [&](auto* object, auto* set, auto attribute) {
    for (const std::size_t bytes : {1, 2, 4, 8, 16}) answers.push_back(set(object, attribute, zeros.data(), bytes));
  };
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t layout = nullptr;
  cublasLtMatmulPreference_t preference = nullptr;
  answers.push_back(lt.create_desc(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  answers.push_back(lt.create_layout(&layout, CUDA_R_16BF, 64, 32, 64));
  answers.push_back(lt.create_preference(&preference));
  for (const auto attribute : {CUBLASLT_MATMUL_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSB, CUBLASLT_MATMUL_DESC_EPILOGUE,
                               CUBLASLT_MATMUL_DESC_BIAS_POINTER, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER,
                               CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD}) {
    ask(desc, lt.set_desc, attribute);
  }
  for (const auto attribute : {CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET}) {
    ask(layout, lt.set_layout, attribute);
  }
  for (const auto attribute :
       {CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    ask(preference, lt.set_preference, attribute);
  }
  answers.push_back(lt.destroy_desc(desc));
  answers.push_back(lt.destroy_layout(layout));
  answers.push_back(lt.destroy_preference(preference));
  return answers;
}

TEST(CublasLt, and_its_stand_in_take_the_same_descriptors) {
  const std::string name = "libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR);
  // Stays open: what it allocates when it is loaded would be a leak once it were gone.
  if (dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL) == nullptr) GTEST_SKIP() << dlerror();
  EXPECT_EQ(answers_of(cuda::open_cublaslt()), answers_of(cuda::open_cublaslt(name.c_str())));
}

}  // namespace
}  // namespace polaron::test
