// Matrix products as cuBLASLt sees them (internal to gemm*.cu): a call is checked, turned into the library's
// descriptors, and queued with an algorithm that the library offered for it.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "cuda/cublaslt.h"
#include "cuda/gemm.h"

namespace polaron::cuda {

// What the choice of an algorithm may depend on, as numbers (Field in gemm_library.cu says which).
inline constexpr std::size_t kGemmKindFields = 23;
using GemmKind = std::array<std::int64_t, kGemmKindFields>;
GemmKind kind_of(const GemmCall& call);

bool reads_c(const GemmCall& call);          // or the addend in its place
std::string describe(const GemmCall& call);  // for messages

// Throws std::logic_error unless the call is one that gemm.h describes.
void require_sound(const GemmCall& call);

// The library's choice of a kernel and its settings. It may be stored as it is for the same version of the library.
struct GemmAlgorithm {
  cublasLtMatmulAlgo_t opaque;
};

// Objects of the library, destroyed by its own functions.
struct DestroyCublasLt {
  const CublasLt* lt;
  void operator()(cublasLtMatmulDescOpaque_t* desc) const { lt->destroy_desc(desc); }
  void operator()(cublasLtMatrixLayoutOpaque_t* layout) const { lt->destroy_layout(layout); }
  void operator()(cublasLtMatmulPreferenceOpaque_t* preference) const { lt->destroy_preference(preference); }
};

// A call without its addresses, in the library's terms.
struct GemmDescription {
  std::unique_ptr<cublasLtMatmulDescOpaque_t, DestroyCublasLt> operation;
  std::unique_ptr<cublasLtMatrixLayoutOpaque_t, DestroyCublasLt> left, right, result;  // its A, B, and C and D
};

class GemmLibrary {
 public:
  GemmLibrary();  // throws Error(Exit::device)
  GemmLibrary(const GemmLibrary&) = delete;
  GemmLibrary& operator=(const GemmLibrary&) = delete;
  ~GemmLibrary();

  std::uint64_t version() const { return lt_.get_version(); }

  // Throws Error(Exit::device) that names function, call and status, unless that is success.
  void check(cublasStatus_t status, const char* function, const GemmCall* call = nullptr) const;

  GemmDescription describe(const GemmCall& call) const;
  // The addresses of bias and aux.
  void set_addresses(const GemmDescription& description, const GemmCall& call) const;

  // The algorithms that the library offers, its favourite first; status: why there are none.
  std::vector<GemmAlgorithm> algorithms(const GemmDescription& description, const GemmCall& call,
                                        std::size_t workspace_bytes, cublasStatus_t& status) const;
  // Whether an algorithm from elsewhere can run this.
  bool can_run(const GemmDescription& description, const GemmAlgorithm& algorithm) const;

  struct Run {
    void* result;  // in the place of c, which is read from there too unless there is an addend
    void* workspace;
    std::size_t workspace_bytes;
    cudaStream_t stream;
  };
  cublasStatus_t queue(const GemmDescription& description, const GemmCall& call, const GemmAlgorithm& algorithm,
                       const Run& run) const;

 private:
  CublasLt lt_;
  cublasLtHandle_t handle_ = nullptr;
};

}  // namespace polaron::cuda
