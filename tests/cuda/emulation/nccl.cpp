#include "emulation/nccl.h"

#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <utility>

#include "emulation/emulation.h"

namespace polaron::cuda {
namespace {

using emulation::fake_nccl;
using Result = Nccl::Result;

struct Call {
  std::string what;  // the same on all ranks
  const void* send = nullptr;
  void* receive = nullptr;
  std::size_t bytes = 0;  // sent by each rank
  cudaStream_t stream = nullptr;
  cudaEvent_t sent = nullptr;
  std::vector<std::byte> contribution;
  std::function<void(const std::vector<std::vector<std::byte>>&, int rank, void* receive)> take;
  ~Call() {
    if (sent != nullptr) cudaEventDestroy(sent);
  }
};

struct Clique {
  int processes = 0;
  std::vector<std::vector<std::shared_ptr<Call>>> calls;  // [rank][number]
};

std::map<int, std::shared_ptr<Clique>>& cliques() {
  static std::map<int, std::shared_ptr<Clique>> instance;
  return instance;
}

}  // namespace

struct Nccl::CommOpaque {
  std::shared_ptr<Clique> clique;
  int rank = 0;
};

namespace {

std::vector<std::function<void()>>& grouped() {
  static std::vector<std::function<void()>> instance;
  return instance;
}

Result begin(const char* function) {
  auto& next = fake_nccl().next;
  const auto found = next.find(function);
  if (found == next.end()) return Result::success;
  const Result result = found->second;
  next.erase(found);
  return result;
}

void carry_out(Clique& clique, int rank, std::size_t number) {
  const Call& own = *clique.calls[static_cast<std::size_t>(rank)][number];
  std::vector<std::vector<std::byte>> sent;
  for (const auto& calls : clique.calls) {
    if (calls.size() <= number) throw std::logic_error("NCCL waits for ever: " + own.what + " is not called by all");
    if (calls[number]->what != own.what) throw std::logic_error("NCCL: " + own.what + " meets " + calls[number]->what);
    cudaEventSynchronize(calls[number]->sent);
    sent.push_back(calls[number]->contribution);
  }
  own.take(sent, rank, own.receive);
}

Result add(const char* function, Nccl::Comm comm, std::shared_ptr<Call> call) {
  if (const Result result = begin(function); result != Result::success) return result;
  const auto queue = [comm, call = std::move(call)] {
    Clique* const clique = comm->clique.get();
    const int rank = comm->rank;
    auto& calls = clique->calls[static_cast<std::size_t>(rank)];
    const std::size_t number = calls.size();
    calls.push_back(call);
    fake_nccl().calls.push_back(std::to_string(rank) + ": " + call->what);
    emulation::enqueue(call->stream, [c = call.get()] {
      const auto* const data = static_cast<const std::byte*>(c->send);
      c->contribution.assign(data, data + c->bytes);
    });
    cudaEventCreateWithFlags(&call->sent, cudaEventDisableTiming);
    cudaEventRecord(call->sent, call->stream);
    emulation::enqueue(call->stream, [keep = comm->clique, rank, number] { carry_out(*keep, rank, number); });
  };
  if (fake_nccl().open_groups > 0) {
    grouped().push_back(queue);
  } else {
    queue();
  }
  return Result::success;
}

Result get_version(int* version) {
  *version = 21300;
  return Result::success;
}

Result get_unique_id(Nccl::UniqueId* id) {
  if (const Result result = begin("ncclGetUniqueId"); result != Result::success) return result;
  static int drawn = 0;
  ++drawn;
  std::memset(id, 0x5A, sizeof *id);
  std::memcpy(id->internal + 100, &drawn, sizeof drawn);
  return Result::success;
}

const char* get_error_string(Result result) {
  return result == Result::success ? "no error" : "an error of the stand-in";
}
const char* get_last_error(Nccl::Comm) { return "details of the stand-in"; }

Result comm_init_rank(Nccl::Comm* comm, int processes, Nccl::UniqueId id, int rank) {
  if (const Result result = begin("ncclCommInitRank"); result != Result::success) return result;
  int drawn = 0;
  std::memcpy(&drawn, id.internal + 100, sizeof drawn);
  std::shared_ptr<Clique>& clique = cliques()[drawn];
  if (!clique) {
    clique = std::make_shared<Clique>();
    clique->processes = processes;
    clique->calls.resize(static_cast<std::size_t>(processes));
  }
  if (clique->processes != processes || rank < 0 || rank >= processes) throw std::logic_error("NCCL: another clique");
  *comm = new Nccl::CommOpaque{clique, rank};
  ++fake_nccl().living;
  return Result::success;
}

Result end_comm(const char* how, Nccl::Comm comm) {
  fake_nccl().calls.push_back(std::to_string(comm->rank) + ": " + how);
  delete comm;
  --fake_nccl().living;
  return Result::success;
}
Result comm_destroy(Nccl::Comm comm) { return end_comm("destroy", comm); }
Result comm_abort(Nccl::Comm comm) { return end_comm("abort", comm); }

Result comm_get_async_error(Nccl::Comm, Result* error) {
  *error = static_cast<Result>(fake_nccl().asynchronous.load());
  return Result::success;
}

Result group_start() {
  if (const Result result = begin("ncclGroupStart"); result != Result::success) return result;
  ++fake_nccl().open_groups;
  return Result::success;
}
Result group_end() {
  if (fake_nccl().open_groups == 0) throw std::logic_error("NCCL: no group is open");
  if (--fake_nccl().open_groups > 0) return Result::success;
  const auto work = std::exchange(grouped(), {});
  fake_nccl().calls.push_back("group of " + std::to_string(work.size()));
  for (const auto& call : work) call();
  return Result::success;
}

std::size_t size_of(Nccl::Type type) {
  return type == Nccl::Type::uint8 ? 1 : type == Nccl::Type::float32 ? sizeof(float) : sizeof(double);
}

std::shared_ptr<Call> make_call(std::string what, const void* send, void* receive, std::size_t count, Nccl::Type type,
                                cudaStream_t stream) {
  auto call = std::make_shared<Call>();
  call->what = what + " " + std::to_string(count) + " of type " + std::to_string(static_cast<int>(type));
  call->send = send;
  call->receive = receive;
  call->bytes = count * size_of(type);
  call->stream = stream;
  return call;
}

Result reduce(const void* send, void* receive, std::size_t count, Nccl::Type type, Nccl::Reduction, int root,
              Nccl::Comm comm, cudaStream_t stream) {
  if (type != Nccl::Type::float32) throw std::logic_error("NCCL stand-in: sums of fp32 only");
  auto call = make_call("reduce", send, receive, count, type, stream);
  call->what += " to " + std::to_string(root);
  call->take = [root, count](const auto& sent, int rank, void* to) {
    if (rank != root) return;
    std::vector<float> sums(count, 0.0F), values(count);
    for (const auto& contribution : sent) {
      std::memcpy(values.data(), contribution.data(), contribution.size());
      for (std::size_t i = 0; i < count; ++i) sums[i] += values[i];
    }
    std::memcpy(to, sums.data(), count * sizeof(float));
  };
  return add("ncclReduce", comm, std::move(call));
}

Result broadcast(const void* send, void* receive, std::size_t count, Nccl::Type type, int root, Nccl::Comm comm,
                 cudaStream_t stream) {
  auto call = make_call("broadcast", send, receive, count, type, stream);
  call->what += " from " + std::to_string(root);
  call->take = [root](const auto& sent, int, void* to) {
    const auto& bytes = sent[static_cast<std::size_t>(root)];
    std::memcpy(to, bytes.data(), bytes.size());
  };
  return add("ncclBroadcast", comm, std::move(call));
}

Result all_gather(const void* send, void* receive, std::size_t count, Nccl::Type type, Nccl::Comm comm,
                  cudaStream_t stream) {
  auto call = make_call("gather", send, receive, count, type, stream);
  call->take = [](const auto& sent, int, void* to) {
    auto* at = static_cast<std::byte*>(to);
    for (const auto& bytes : sent) {
      std::memcpy(at, bytes.data(), bytes.size());
      at += bytes.size();
    }
  };
  return add("ncclAllGather", comm, std::move(call));
}

}  // namespace
}  // namespace polaron::cuda

namespace polaron::cuda::emulation {

FakeNccl& fake_nccl() {
  static FakeNccl instance;
  return instance;
}

void* nccl_function(const char* name) {
  static const std::map<std::string, void*> functions = {
      {"ncclGetVersion", reinterpret_cast<void*>(&get_version)},
      {"ncclGetUniqueId", reinterpret_cast<void*>(&get_unique_id)},
      {"ncclGetErrorString", reinterpret_cast<void*>(&get_error_string)},
      {"ncclGetLastError", reinterpret_cast<void*>(&get_last_error)},
      {"ncclCommInitRank", reinterpret_cast<void*>(&comm_init_rank)},
      {"ncclCommDestroy", reinterpret_cast<void*>(&comm_destroy)},
      {"ncclCommAbort", reinterpret_cast<void*>(&comm_abort)},
      {"ncclCommGetAsyncError", reinterpret_cast<void*>(&comm_get_async_error)},
      {"ncclGroupStart", reinterpret_cast<void*>(&group_start)},
      {"ncclGroupEnd", reinterpret_cast<void*>(&group_end)},
      {"ncclReduce", reinterpret_cast<void*>(&reduce)},
      {"ncclBroadcast", reinterpret_cast<void*>(&broadcast)},
      {"ncclAllGather", reinterpret_cast<void*>(&all_gather)}};
  const auto found = functions.find(name);
  return found == functions.end() ? nullptr : found->second;
}

}  // namespace polaron::cuda::emulation
