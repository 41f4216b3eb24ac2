// Singular values of gradients and momenta during a run, and what low-rank orthogonalization makes of them: one line of
// spectra.jsonl for each matrix (docs/formats.md).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "train/metrics.h"
#include "train/session.h"

namespace polaron {

class Spectra {
 public:
  // The matrices whose names match the config's pattern; without one, those of the middle block. Throws
  // Error(Exit::usage) where none does. The session must outlive the object.
  explicit Spectra(Session& session);

  // After the update number `step`, while its gradients are still there. Waits for the stream. Each process measures
  // what it owns. The lines of all processes on process 0, nothing on the others. Collective.
  std::vector<std::string> measure(std::int64_t step);

 private:
  struct Chosen {
    std::string name;
    std::int64_t rows, cols, stride;
    std::int64_t offset;                // of its first element in the flat buffers
    const OptimizerSettings* settings;  // of its optimizer
    std::int64_t rank;                  // that it is orthogonalized at; 0: in full, or not at all
    const float* momentum;              // null: it has none here
    std::size_t parameter, block;       // in the table
  };
  std::vector<float> download(const float* data, const Chosen& matrix, std::int64_t stride);
  SpectrumRecord measure(const Chosen& matrix, std::int64_t step, const char* of, const std::vector<float>& values);
  // The singular values of Q^T M, at most `rank` of them; those of the orthogonalized momentum where `orthogonalize`.
  std::vector<double> projected(const Chosen& matrix, std::int64_t step, std::int64_t rank, bool orthogonalize,
                                const std::vector<float>& wide);

  Session& session_;
  std::vector<Chosen> chosen_;
};

}  // namespace polaron
