#include "emulation/cublaslt.h"

#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <utility>

#include "emulation/cublaslt_product.h"
#include "emulation/emulation.h"

namespace polaron::cuda::emulation {
namespace {

// Attributes by number, as bytes; the sizes are those that cublasLt.h gives.
using Sizes = std::map<int, std::size_t>;
class Attributes {
 public:
  cublasStatus_t set(const Sizes& sizes, int attribute, const void* value, std::size_t bytes) {
    const auto size = sizes.find(attribute);
    if (size == sizes.end() || value == nullptr || bytes != size->second) return CUBLAS_STATUS_INVALID_VALUE;
    const auto* const data = static_cast<const std::byte*>(value);
    values_[attribute].assign(data, data + bytes);
    return CUBLAS_STATUS_SUCCESS;
  }
  template <class T>
  T get(int attribute, T otherwise) const {
    const auto found = values_.find(attribute);
    if (found != values_.end()) std::memcpy(&otherwise, found->second.data(), sizeof(T));
    return otherwise;
  }

 private:
  std::map<int, std::vector<std::byte>> values_;
};

const Sizes kDescSizes = {{CUBLASLT_MATMUL_DESC_TRANSA, 4},
                          {CUBLASLT_MATMUL_DESC_TRANSB, 4},
                          {CUBLASLT_MATMUL_DESC_EPILOGUE, 4},
                          {CUBLASLT_MATMUL_DESC_BIAS_POINTER, 8},
                          {CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, 8},
                          {CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, 8}};
const Sizes kLayoutSizes = {{CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, 4}, {CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, 8}};
const Sizes kPreferenceSizes = {
    {CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, 8},   {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, 4},
    {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, 4}, {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, 4},
    {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, 4}, {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, 4}};

}  // namespace
}  // namespace polaron::cuda::emulation

using namespace polaron::cuda::emulation;  // NOLINT: what follows stands for the library, outside any namespace

struct cublasLtContext {};  // the library's own type is opaque; this one is ours

namespace {

struct FakeDesc : cublasLtMatmulDescOpaque_t {
  cublasComputeType_t compute;
  Attributes attributes;
};
struct FakePreference : cublasLtMatmulPreferenceOpaque_t {
  Attributes attributes;
};
struct FakeLayout : cublasLtMatrixLayoutOpaque_t {
  cudaDataType_t type;
  std::uint64_t rows, cols;
  std::int64_t ld;
  Attributes attributes;
  int batch() const { return attributes.get(CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, std::int32_t{1}); }
  std::int64_t batch_stride() const {
    return attributes.get(CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, std::int64_t{0});
  }
  std::size_t size() const { return type == CUDA_R_16BF ? 2 : 4; }
};

// What the library keeps in a cublasLtMatmulAlgo_t.
struct AlgorithmBits {
  std::uint64_t version, number;
  std::uint64_t alignment[4];  // of A, B, C and D that it relies on
};
static_assert(sizeof(AlgorithmBits) <= sizeof(cublasLtMatmulAlgo_t));
constexpr std::size_t kSplitWorkspace = 1024;

FakeOperand operand(const void* data, const FakeLayout& layout, bool transposed = false, bool tf32 = false) {
  return {data,
          layout.type,
          tf32,
          static_cast<std::int64_t>(layout.rows),
          static_cast<std::int64_t>(layout.cols),
          layout.ld,
          layout.batch_stride(),
          transposed};
}

bool is_transposed(const FakeDesc& desc, cublasLtMatmulDescAttributes_t side) {
  return desc.attributes.get(side, std::int32_t{CUBLAS_OP_N}) == CUBLAS_OP_T;
}
std::uint32_t epilogue_of(const FakeDesc& desc) {
  return desc.attributes.get(CUBLASLT_MATMUL_DESC_EPILOGUE, static_cast<std::uint32_t>(CUBLASLT_EPILOGUE_DEFAULT));
}
void* pointer_of(const FakeDesc& desc, cublasLtMatmulDescAttributes_t attribute) {
  return desc.attributes.get<void*>(attribute, nullptr);
}
bool aligned(const void* data, std::size_t bytes) { return reinterpret_cast<std::uintptr_t>(data) % bytes == 0; }

struct Problem {
  const FakeDesc& desc;
  const FakeLayout &a, &b, &c, &d;
};

// What the library says to the descriptors, before it sees any matrix.
cublasStatus_t judge(const Problem& p) {
  const auto wrong = CUBLAS_STATUS_INVALID_VALUE, unsupported = CUBLAS_STATUS_NOT_SUPPORTED;
  const bool at = is_transposed(p.desc, CUBLASLT_MATMUL_DESC_TRANSA);
  const bool bt = is_transposed(p.desc, CUBLASLT_MATMUL_DESC_TRANSB);
  if ((at ? p.a.cols : p.a.rows) != p.d.rows || (bt ? p.b.rows : p.b.cols) != p.d.cols) return wrong;
  if ((at ? p.a.rows : p.a.cols) != (bt ? p.b.cols : p.b.rows)) return wrong;
  if (p.c.rows != p.d.rows || p.c.cols != p.d.cols || p.c.type != p.d.type) return wrong;
  for (const FakeLayout* layout : {&p.a, &p.b, &p.c, &p.d}) {
    if (layout->ld < static_cast<std::int64_t>(layout->rows) || layout->batch() != p.d.batch()) return wrong;
  }
  const auto span = p.d.ld * (static_cast<std::int64_t>(p.d.cols) - 1) + static_cast<std::int64_t>(p.d.rows);
  if (p.d.batch() > 1 && p.d.batch_stride() < span) return wrong;  // its matrices overlap
  if (p.a.type != p.b.type) return unsupported;
  if (p.a.type == CUDA_R_32F && p.d.type != CUDA_R_32F) return unsupported;
  const bool tf32 = p.desc.compute == CUBLAS_COMPUTE_32F_FAST_TF32;
  if (p.desc.compute != CUBLAS_COMPUTE_32F && !(tf32 && p.a.type == CUDA_R_32F)) return unsupported;

  const std::uint32_t epilogue = epilogue_of(p.desc);
  if (epilogue == CUBLASLT_EPILOGUE_DEFAULT) return CUBLAS_STATUS_SUCCESS;
  const void* const bias = pointer_of(p.desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER);
  const void* const aux = pointer_of(p.desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER);
  if (has_bias(epilogue) && bias == nullptr) return wrong;
  if (has_aux(epilogue)) {
    const auto ld = p.desc.attributes.get(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, std::int64_t{0});
    if (aux == nullptr || ld % 8 != 0 || ld < static_cast<std::int64_t>(p.d.rows)) return wrong;
    if (!aligned(aux, 16)) return unsupported;
  }
  // The kernels with epilogues work on vectors of 16 bytes.
  if (has_bias(epilogue) && !aligned(bias, 16)) return unsupported;
  for (const FakeLayout* layout : {&p.a, &p.b, &p.d}) {
    if (static_cast<std::size_t>(layout->ld) * layout->size() % 16 != 0) return unsupported;
  }
  return fake_cublaslt().epilogues ? CUBLAS_STATUS_SUCCESS : unsupported;
}

// What a call has been told to return; success otherwise.
cublasStatus_t begin(const char* function) {
  FakeCublasLt& fake = fake_cublaslt();
  if (fake.failing_function != function) return CUBLAS_STATUS_SUCCESS;
  fake.failing_function.clear();
  return fake.failure;
}

// Whether a matrix of the result shares memory with an operand. Matrices of a batch count as one piece.
bool overlap(const void* x, const FakeLayout& a, const void* y, const FakeLayout& b) {
  const auto bytes = [](const FakeLayout& l) {
    const std::int64_t one = l.ld * (static_cast<std::int64_t>(l.cols) - 1) + static_cast<std::int64_t>(l.rows);
    return static_cast<std::size_t>((l.batch() - 1) * l.batch_stride() + one) * l.size();
  };
  const auto first = reinterpret_cast<std::uintptr_t>(x), second = reinterpret_cast<std::uintptr_t>(y);
  return first < second + bytes(b) && second < first + bytes(a);
}

}  // namespace

extern "C" {

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  if (const cublasStatus_t status = begin("cublasLtCreate"); status != CUBLAS_STATUS_SUCCESS) return status;
  *handle = new cublasLtContext;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}
std::size_t cublasLtGetVersion() { return fake_cublaslt().version; }
const char* cublasLtGetStatusName(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return "CUBLAS_STATUS_EXECUTION_FAILED";
    default:
      return "a status of the stand-in";
  }
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* desc, cublasComputeType_t compute, cudaDataType_t scale) {
  if (scale != CUDA_R_32F) return CUBLAS_STATUS_INVALID_VALUE;
  auto created = std::make_unique<FakeDesc>();
  created->compute = compute;
  *desc = created.release();
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
  delete static_cast<FakeDesc*>(desc);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, std::size_t bytes) {
  return static_cast<FakeDesc*>(desc)->attributes.set(kDescSizes, attribute, value, bytes);
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type, std::uint64_t rows,
                                          std::uint64_t cols, std::int64_t ld) {
  auto created = std::make_unique<FakeLayout>();
  created->type = type;
  created->rows = rows;
  created->cols = cols;
  created->ld = ld;
  *layout = created.release();
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete static_cast<FakeLayout*>(layout);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute, const void* value,
                                                std::size_t bytes) {
  return static_cast<FakeLayout*>(layout)->attributes.set(kLayoutSizes, attribute, value, bytes);
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  *preference = new FakePreference;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete static_cast<FakePreference*>(preference);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, const void* value,
                                                    std::size_t bytes) {
  return static_cast<FakePreference*>(preference)->attributes.set(kPreferenceSizes, attribute, value, bytes);
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
                                              cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
                                              cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t preference,
                                              int requested, cublasLtMatmulHeuristicResult_t results[], int* count) {
  ++fake_cublaslt().heuristics;
  *count = 0;
  if (const cublasStatus_t s = begin("cublasLtMatmulAlgoGetHeuristic"); s != CUBLAS_STATUS_SUCCESS) return s;
  const Problem problem{*static_cast<FakeDesc*>(desc), *static_cast<FakeLayout*>(a), *static_cast<FakeLayout*>(b),
                        *static_cast<FakeLayout*>(c), *static_cast<FakeLayout*>(d)};
  if (const cublasStatus_t s = judge(problem); s != CUBLAS_STATUS_SUCCESS) return s;
  const Attributes& wanted = static_cast<FakePreference*>(preference)->attributes;
  const auto workspace = wanted.get(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::uint64_t{0});
  const auto schemes = wanted.get(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                  static_cast<std::uint32_t>(CUBLASLT_REDUCTION_SCHEME_MASK));
  const auto offer = [&](std::uint64_t number, std::size_t workspace_bytes) {
    if (*count == requested || workspace_bytes > workspace) return;
    const auto alignment = [&](int attribute) { return std::uint64_t{wanted.get(attribute, std::uint32_t{256})}; };
    const AlgorithmBits bits{
        fake_cublaslt().version,
        number,
        {alignment(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES), alignment(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES),
         alignment(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES), alignment(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES)}};
    cublasLtMatmulHeuristicResult_t& result = results[(*count)++];
    result = {};
    std::memcpy(&result.algo, &bits, sizeof(bits));
    result.workspaceSize = workspace_bytes;
    result.state = CUBLAS_STATUS_SUCCESS;
  };
  if ((schemes & CUBLASLT_REDUCTION_SCHEME_INPLACE) != 0) offer(kRacing, 0);
  offer(kManyLanes, 0);
  offer(kFewLanes, 0);
  if ((schemes & CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE) != 0) offer(kSplit, kSplitWorkspace);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
                                       cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t* algo, cublasLtMatmulHeuristicResult_t* result) {
  AlgorithmBits bits{};
  std::memcpy(&bits, algo, sizeof(bits));
  *result = {};
  if (bits.version != fake_cublaslt().version || bits.number >= kFakeAlgorithms) return CUBLAS_STATUS_NOT_SUPPORTED;
  return judge({*static_cast<FakeDesc*>(desc), *static_cast<FakeLayout*>(a), *static_cast<FakeLayout*>(b),
                *static_cast<FakeLayout*>(c), *static_cast<FakeLayout*>(d)});
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t desc, const void* alpha, const void* a,
                              cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout,
                              const void* beta, const void* c, cublasLtMatrixLayout_t c_layout, void* d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algo, void* workspace,
                              std::size_t workspace_bytes, cudaStream_t stream) {
  if (const cublasStatus_t status = begin("cublasLtMatmul"); status != CUBLAS_STATUS_SUCCESS) return status;
  const Problem p{*static_cast<FakeDesc*>(desc), *static_cast<FakeLayout*>(a_layout),
                  *static_cast<FakeLayout*>(b_layout), *static_cast<FakeLayout*>(c_layout),
                  *static_cast<FakeLayout*>(d_layout)};
  AlgorithmBits bits{};
  std::memcpy(&bits, algo, sizeof(bits));
  cublasLtMatmulHeuristicResult_t ignored{};
  if (const cublasStatus_t s =
          cublasLtMatmulAlgoCheck(nullptr, desc, a_layout, b_layout, c_layout, d_layout, algo, &ignored);
      s != CUBLAS_STATUS_SUCCESS) {
    return s;
  }
  void* const aux = pointer_of(p.desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER);
  const std::uint32_t epilogue = epilogue_of(p.desc);
  const bool sound = aligned(a, bits.alignment[0]) && aligned(b, bits.alignment[1]) && aligned(c, bits.alignment[2]) &&
                     aligned(d, bits.alignment[3]) && !overlap(d, p.d, a, p.a) && !overlap(d, p.d, b, p.b) &&
                     (!has_aux(epilogue) || aux != d) && alpha != nullptr && beta != nullptr &&
                     (bits.number != kSplit || (workspace != nullptr && workspace_bytes >= kSplitWorkspace));
  if (!sound) return CUBLAS_STATUS_INVALID_VALUE;
  if (epilogue != CUBLASLT_EPILOGUE_DEFAULT && !fake_cublaslt().epilogues_run) return CUBLAS_STATUS_NOT_SUPPORTED;

  const auto rows = static_cast<std::int64_t>(p.d.rows), cols = static_cast<std::int64_t>(p.d.cols);
  const auto aux_ld = p.desc.attributes.get(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, std::int64_t{0});
  const bool tf32 = p.desc.compute == CUBLAS_COMPUTE_32F_FAST_TF32;
  const FakeProduct product{
      operand(a, p.a, is_transposed(p.desc, CUBLASLT_MATMUL_DESC_TRANSA), tf32),
      operand(b, p.b, is_transposed(p.desc, CUBLASLT_MATMUL_DESC_TRANSB), tf32),
      operand(c, p.c),
      {pointer_of(p.desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER), p.d.type, false, rows, 1, rows, 0, false},
      {aux, p.d.type, false, rows, cols, aux_ld, 0, false},
      d,
      p.d.batch(),
      p.d.ld,
      p.d.batch_stride(),
      epilogue,
      bits.number,
      *static_cast<const float*>(alpha),
      *static_cast<const float*>(beta)};
  enqueue(stream, product);
  return CUBLAS_STATUS_SUCCESS;
}

}  // extern "C"

namespace polaron::cuda::emulation {

FakeCublasLt& fake_cublaslt() {
  static FakeCublasLt instance;
  return instance;
}

void* cublaslt_function(const char* name) {
  static const std::map<std::string, void*> functions = {
      {"cublasLtCreate", reinterpret_cast<void*>(&cublasLtCreate)},
      {"cublasLtDestroy", reinterpret_cast<void*>(&cublasLtDestroy)},
      {"cublasLtGetVersion", reinterpret_cast<void*>(&cublasLtGetVersion)},
      {"cublasLtGetStatusName", reinterpret_cast<void*>(&cublasLtGetStatusName)},
      {"cublasLtMatmul", reinterpret_cast<void*>(&cublasLtMatmul)},
      {"cublasLtMatmulAlgoGetHeuristic", reinterpret_cast<void*>(&cublasLtMatmulAlgoGetHeuristic)},
      {"cublasLtMatmulAlgoCheck", reinterpret_cast<void*>(&cublasLtMatmulAlgoCheck)},
      {"cublasLtMatmulDescCreate", reinterpret_cast<void*>(&cublasLtMatmulDescCreate)},
      {"cublasLtMatmulDescDestroy", reinterpret_cast<void*>(&cublasLtMatmulDescDestroy)},
      {"cublasLtMatmulDescSetAttribute", reinterpret_cast<void*>(&cublasLtMatmulDescSetAttribute)},
      {"cublasLtMatrixLayoutCreate", reinterpret_cast<void*>(&cublasLtMatrixLayoutCreate)},
      {"cublasLtMatrixLayoutDestroy", reinterpret_cast<void*>(&cublasLtMatrixLayoutDestroy)},
      {"cublasLtMatrixLayoutSetAttribute", reinterpret_cast<void*>(&cublasLtMatrixLayoutSetAttribute)},
      {"cublasLtMatmulPreferenceCreate", reinterpret_cast<void*>(&cublasLtMatmulPreferenceCreate)},
      {"cublasLtMatmulPreferenceDestroy", reinterpret_cast<void*>(&cublasLtMatmulPreferenceDestroy)},
      {"cublasLtMatmulPreferenceSetAttribute", reinterpret_cast<void*>(&cublasLtMatmulPreferenceSetAttribute)}};
  const auto found = functions.find(name);
  return found == functions.end() ? nullptr : found->second;
}

}  // namespace polaron::cuda::emulation
