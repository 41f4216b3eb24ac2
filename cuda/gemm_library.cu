#include "cuda/gemm_library.h"

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <utility>

namespace polaron::cuda {
namespace {

constexpr int kAlgorithms = 8;              // that are asked for
constexpr std::size_t kMostAlignment = 16;  // no kernel needs more, and more would tell apart what is the same

// The numbers of a GemmKind: everything that a plan may depend on.
enum Field : std::uint8_t {
  kM,
  kN,
  kK,
  kBatch,
  kAStride,
  kBStride,
  kCStride,
  kAuxStride,
  kABatchStride,
  kBBatchStride,
  kCBatchStride,
  kAAlignment,
  kBAlignment,
  kCAlignment,
  kBiasAlignment,
  kAuxAlignment,
  kOperands,
  kResult,
  kATransposed,
  kBTransposed,
  kEpilogue,
  kReadsC,
  kTf32,
  kFields
};
static_assert(kFields == kGemmKindFields);

bool has_bias(GemmEpilogue epilogue) {
  return epilogue == GemmEpilogue::bias || epilogue == GemmEpilogue::gelu_aux_bias;
}
bool has_aux(GemmEpilogue epilogue) { return epilogue != GemmEpilogue::none && epilogue != GemmEpilogue::bias; }

std::int64_t alignment(const void* data) {
  const auto address = reinterpret_cast<std::uintptr_t>(data);
  std::size_t bytes = kMostAlignment;
  while (address % bytes != 0) bytes /= 2;
  return static_cast<std::int64_t>(bytes);
}

const char* name_of(GemmEpilogue epilogue) {
  switch (epilogue) {
    case GemmEpilogue::none:
      return "none";
    case GemmEpilogue::bias:
      return "bias";
    case GemmEpilogue::gelu_aux:
      return "GELU";
    case GemmEpilogue::gelu_aux_bias:
      return "bias and GELU";
    case GemmEpilogue::dgelu:
      return "derivative of GELU";
  }
  return "unknown";
}

// What beta multiplies, where the result goes to `result`.
const void* addend_of(const GemmCall& call, const void* result) {
  return reads_c(call) && call.addend != nullptr ? call.addend : result;
}

cudaDataType_t library_type(DType type) { return type == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F; }

std::uint32_t library_epilogue(GemmEpilogue epilogue) {
  switch (epilogue) {
    case GemmEpilogue::none:
      return CUBLASLT_EPILOGUE_DEFAULT;
    case GemmEpilogue::bias:
      return CUBLASLT_EPILOGUE_BIAS;
    case GemmEpilogue::gelu_aux:
      return CUBLASLT_EPILOGUE_GELU_AUX;
    case GemmEpilogue::gelu_aux_bias:
      return CUBLASLT_EPILOGUE_GELU_AUX_BIAS;
    case GemmEpilogue::dgelu:
      return CUBLASLT_EPILOGUE_DGELU;
  }
  throw std::logic_error("Gemm: unknown epilogue");
}

// A row-major matrix of rows x cols: column-major, cols x rows, to the library.
struct Matrix {
  DType type;
  std::int64_t rows, cols, stride, batch_stride;
};

}  // namespace

bool reads_c(const GemmCall& call) { return call.beta != 0.0F; }

GemmKind kind_of(const GemmCall& call) {
  const bool batched = call.batch > 1;
  GemmKind kind{};
  kind[kM] = call.m;
  kind[kN] = call.n;
  kind[kK] = call.k;
  kind[kBatch] = call.batch;
  kind[kAStride] = call.a.stride;
  kind[kBStride] = call.b.stride;
  kind[kCStride] = call.c_stride;
  kind[kAuxStride] = has_aux(call.epilogue) ? call.aux_stride : 0;
  kind[kABatchStride] = batched ? call.a.batch_stride : 0;
  kind[kBBatchStride] = batched ? call.b.batch_stride : 0;
  kind[kCBatchStride] = batched ? call.c_batch_stride : 0;
  kind[kAAlignment] = alignment(call.a.data);
  kind[kBAlignment] = alignment(call.b.data);
  kind[kCAlignment] = std::min(alignment(call.c), alignment(addend_of(call, call.c)));
  kind[kBiasAlignment] = has_bias(call.epilogue) ? alignment(call.bias) : 0;
  kind[kAuxAlignment] = has_aux(call.epilogue) ? alignment(call.aux) : 0;
  kind[kOperands] = static_cast<std::int64_t>(call.a.dtype);
  kind[kResult] = static_cast<std::int64_t>(call.c_dtype);
  kind[kATransposed] = call.a.transposed ? 1 : 0;
  kind[kBTransposed] = call.b.transposed ? 1 : 0;
  kind[kEpilogue] = static_cast<std::int64_t>(call.epilogue);
  kind[kTf32] = call.tf32 ? 1 : 0;
  kind[kReadsC] = !reads_c(call) ? 0 : call.addend == nullptr ? 1 : 2;
  return kind;
}

std::string describe(const GemmCall& call) {
  const auto shape = [](std::int64_t rows, std::int64_t cols) {
    return std::string("[") + std::to_string(rows) + ", " + std::to_string(cols) + "]";
  };
  return std::string("product ") + shape(call.m, call.k) + (call.a.transposed ? " (stored transposed)" : "") + " x " +
         shape(call.k, call.n) + (call.b.transposed ? " (stored transposed)" : "") + ", batch " +
         std::to_string(call.batch) + ", " + polaron::name_of(call.a.dtype) + (call.tf32 ? " as tf32" : "") + " to " +
         polaron::name_of(call.c_dtype) + ", epilogue " + name_of(call.epilogue) + ", strides " +
         std::to_string(call.a.stride) + ", " + std::to_string(call.b.stride) + " and " + std::to_string(call.c_stride);
}

// Throws std::logic_error unless the call is one that gemm.h describes.
void require_sound(const GemmCall& call) {
  const auto require = [&](bool condition, const char* what) {
    if (!condition) throw std::logic_error(std::string("Gemm: ") + what + " in a " + describe(call));
  };
  const auto is = [&](DType a, DType b, DType c) {
    return call.a.dtype == a && call.b.dtype == b && call.c_dtype == c;
  };
  require(is(DType::f32, DType::f32, DType::f32) || is(DType::bf16, DType::bf16, DType::f32) ||
              is(DType::bf16, DType::bf16, DType::bf16),
          "unknown combination of types");
  require(call.k > 0, "nothing to sum");
  require(call.a.data != nullptr && call.b.data != nullptr && call.c != nullptr, "missing matrix");
  require(call.a.stride >= (call.a.transposed ? call.m : call.k) &&
              call.b.stride >= (call.b.transposed ? call.k : call.n) && call.c_stride >= call.n,
          "rows that overlap");
  require(call.addend == nullptr || call.addend != call.c, "addend that is the result");
  require(call.batch == 1 || call.epilogue == GemmEpilogue::none, "batched epilogue");
  require(!has_bias(call.epilogue) || call.bias != nullptr, "missing bias");
  require(!has_aux(call.epilogue) ||
              (call.aux != nullptr && call.aux != call.c && call.aux_stride >= call.n && call.aux_stride % 8 == 0),
          "unfit aux");
}

GemmLibrary::GemmLibrary() : lt_(open_cublaslt()) { check(lt_.create(&handle_), "cublasLtCreate"); }
GemmLibrary::~GemmLibrary() { lt_.destroy(handle_); }

void GemmLibrary::check(cublasStatus_t status, const char* function, const GemmCall* call) const {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw Error(Exit::device, std::string("cuBLASLt: ") + function + " failed" +
                                (call == nullptr ? std::string() : " for a " + cuda::describe(*call)) + ": " +
                                lt_.get_status_name(status) + ". CUBLASLT_LOG_LEVEL=2 makes the library say more.");
}

// Row-major c = a b is c^T = b^T a^T in the library's columns, and what is stored by rows is already the transpose
// there: b comes first, and neither is transposed unless the call says so.
GemmDescription GemmLibrary::describe(const GemmCall& call) const {
  cublasLtMatmulDesc_t operation = nullptr;
  const cublasComputeType_t compute = call.tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
  check(lt_.create_desc(&operation, compute, CUDA_R_32F), "cublasLtMatmulDescCreate");
  GemmDescription description;
  description.operation = {operation, DestroyCublasLt{&lt_}};
  const auto set = [&](cublasLtMatmulDescAttributes_t attribute, const auto& value) {
    check(lt_.set_desc(operation, attribute, &value, sizeof(value)), "cublasLtMatmulDescSetAttribute");
  };
  const std::int32_t transposed = CUBLAS_OP_T, plain = CUBLAS_OP_N;
  set(CUBLASLT_MATMUL_DESC_TRANSA, call.b.transposed ? transposed : plain);
  set(CUBLASLT_MATMUL_DESC_TRANSB, call.a.transposed ? transposed : plain);
  set(CUBLASLT_MATMUL_DESC_EPILOGUE, library_epilogue(call.epilogue));
  if (has_aux(call.epilogue)) set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, call.aux_stride);
  set_addresses(description, call);

  const auto layout = [&](const Matrix& matrix) {
    cublasLtMatrixLayout_t handle = nullptr;
    check(lt_.create_layout(&handle, library_type(matrix.type), static_cast<std::uint64_t>(matrix.cols),
                            static_cast<std::uint64_t>(matrix.rows), matrix.stride),
          "cublasLtMatrixLayoutCreate");
    std::unique_ptr<cublasLtMatrixLayoutOpaque_t, DestroyCublasLt> result(handle, DestroyCublasLt{&lt_});
    if (call.batch > 1) {
      const auto count = static_cast<std::int32_t>(call.batch);
      check(lt_.set_layout(handle, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof(count)),
            "cublasLtMatrixLayoutSetAttribute");
      check(lt_.set_layout(handle, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &matrix.batch_stride,
                           sizeof(matrix.batch_stride)),
            "cublasLtMatrixLayoutSetAttribute");
    }
    return result;
  };
  const auto operand = [&](const GemmMatrix& matrix, std::int64_t rows, std::int64_t cols) {
    if (matrix.transposed) std::swap(rows, cols);
    return layout({matrix.dtype, rows, cols, matrix.stride, matrix.batch_stride});
  };
  description.left = operand(call.b, call.k, call.n);
  description.right = operand(call.a, call.m, call.k);
  description.result = layout({call.c_dtype, call.m, call.n, call.c_stride, call.c_batch_stride});
  return description;
}

void GemmLibrary::set_addresses(const GemmDescription& description, const GemmCall& call) const {
  const auto set = [&](cublasLtMatmulDescAttributes_t attribute, const void* address) {
    check(lt_.set_desc(description.operation.get(), attribute, &address, sizeof(address)),
          "cublasLtMatmulDescSetAttribute");
  };
  if (has_bias(call.epilogue)) set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, call.bias);
  if (has_aux(call.epilogue)) set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, call.aux);
}

std::vector<GemmAlgorithm> GemmLibrary::algorithms(const GemmDescription& description, const GemmCall& call,
                                                   std::size_t workspace_bytes, cublasStatus_t& status) const {
  cublasLtMatmulPreference_t handle = nullptr;
  check(lt_.create_preference(&handle), "cublasLtMatmulPreferenceCreate");
  const std::unique_ptr<cublasLtMatmulPreferenceOpaque_t, DestroyCublasLt> preference(handle, DestroyCublasLt{&lt_});
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    check(lt_.set_preference(handle, attribute, &value, sizeof(value)), "cublasLtMatmulPreferenceSetAttribute");
  };
  const auto aligned = [](const void* data) { return static_cast<std::uint32_t>(alignment(data)); };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<std::uint64_t>(workspace_bytes));
  // Sums may be split only where the parts are kept in fp32 and added in a step of their own: the other ways depend on
  // which part is ready first, or round in between.
  set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, static_cast<std::uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, aligned(call.b.data));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, aligned(call.a.data));
  // What a kind knows of these two is the less aligned one.
  const std::uint32_t of_result = std::min(aligned(addend_of(call, call.c)), aligned(call.c));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, of_result);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, of_result);

  std::array<cublasLtMatmulHeuristicResult_t, kAlgorithms> results{};
  int count = 0;
  status = lt_.get_heuristic(handle_, description.operation.get(), description.left.get(), description.right.get(),
                             description.result.get(), description.result.get(), handle, kAlgorithms, results.data(),
                             &count);
  if (status == CUBLAS_STATUS_SUCCESS && count == 0) status = CUBLAS_STATUS_NOT_SUPPORTED;
  std::vector<GemmAlgorithm> offered;
  for (int i = 0; status == CUBLAS_STATUS_SUCCESS && i < count; ++i) {
    const cublasLtMatmulHeuristicResult_t& result = results[static_cast<std::size_t>(i)];
    if (result.state == CUBLAS_STATUS_SUCCESS) offered.push_back({result.algo});
  }
  return offered;
}

bool GemmLibrary::can_run(const GemmDescription& description, const GemmAlgorithm& algorithm) const {
  cublasLtMatmulHeuristicResult_t result{};
  return lt_.check_algo(handle_, description.operation.get(), description.left.get(), description.right.get(),
                        description.result.get(), description.result.get(), &algorithm.opaque,
                        &result) == CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t GemmLibrary::queue(const GemmDescription& description, const GemmCall& call,
                                  const GemmAlgorithm& algorithm, const Run& run) const {
  return lt_.matmul(handle_, description.operation.get(), &call.alpha, call.b.data, description.left.get(), call.a.data,
                    description.right.get(), &call.beta, addend_of(call, run.result), description.result.get(),
                    run.result, description.result.get(), &algorithm.opaque, run.workspace, run.workspace_bytes,
                    run.stream);
}

}  // namespace polaron::cuda
