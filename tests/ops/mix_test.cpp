#include <gtest/gtest.h>

#include <omp.h>

#include <memory>
#include <stdexcept>
#include <vector>

#include "cpu/families.h"
#include "ops/mix_cases.h"

namespace polaron::test {
namespace {

class Mix : public testing::Test {
 protected:
  std::unique_ptr<MixOps> ops_ = cpu::make_mix_ops();
  HostStream stream_;
};

TEST_F(Mix, forward_adds_what_its_terms_say) {
  for (const DType type : kActivationTypes) {
    for (const MixSizes& s : kMixSizes) {
      Matrix x = Matrix::random(s.rows, s.cols, 1, 1.0, 0.0, 3, type);
      Matrix y = Matrix::random(s.rows, s.cols, 2, 1.0, 0.0, 5, type);
      const float a = 0.7F, b = -1.3F;
      Matrix out(s.rows, s.cols, 2, type);
      ops_->forward(stream_, std::vector<MixTerm>{{x.tensor(), &a}, {y.tensor(), &b}}, out.tensor());
      expect_close(out, mixed(x, a, y, b), 1e-6, "two terms");
      ops_->forward(stream_, std::vector<MixTerm>{{x.tensor()}}, out.tensor());
      expect_close(out, x.values(), 0.0, "a copy");
      Matrix in_place = x;
      ops_->forward(stream_, std::vector<MixTerm>{{in_place.tensor()}, {y.tensor(), &b}}, in_place.tensor());
      expect_close(in_place, mixed(x, 1.0F, y, b), 1e-6, "in place");
    }
  }
}

TEST_F(Mix, backward_scales_gradients_and_gives_those_of_coefficients) {
  for (const DType type : kActivationTypes) {
    for (const MixSizes& s : kMixSizes) {
      Matrix x = Matrix::random(s.rows, s.cols, 1, 1.0, 0.0, 3, type);
      Matrix y = Matrix::random(s.rows, s.cols, 2, 1.0, 0.0, 5, type);
      Matrix d = Matrix::random(s.rows, s.cols, 3, 1.0, 0.0, 1, type);
      Matrix d_y = Matrix::random(s.rows, s.cols, 4, 1.0, 0.0, 0, type);
      const Doubles d_before = d.values(), d_y_before = d_y.values();
      const float a = 0.7F, b = -1.3F;
      float d_a = 10.0F, d_b = -20.0F;
      ops_->backward(stream_, d.tensor(), std::vector<MixTerm>{{x.tensor(), &a}, {y.tensor(), &b}},
                     std::vector<MixGradient>{{d.tensor(), false, &d_a}, {d_y.tensor(), true, &d_b}});
      expect_close(d, scaled_sum(d_before, a, d_before, 0.0F), 1e-6, "d_x in place of d_out");
      expect_close(d_y, scaled_sum(d_y_before, 1.0F, d_before, b), 1e-6, "d_y, added");
      const double scale = static_cast<double>(s.rows * s.cols);
      EXPECT_NEAR(d_a, 10.0 + dot(d_before, x.values()), 1e-6 * (10.0 + scale));
      EXPECT_NEAR(d_b, -20.0 + dot(d_before, y.values()), 1e-6 * (20.0 + scale));
    }
  }
}

TEST_F(Mix, any_number_of_threads_gives_the_same_bits) {
  Matrix x = Matrix::random(300, 130, 1), d = Matrix::random(300, 130, 2);
  const float a = 0.3F;
  float first = 0.0F;
  Matrix first_out(300, 130), first_d_x(300, 130);
  const int before = omp_get_max_threads();
  for (const int threads : {1, 2, 5}) {
    omp_set_num_threads(threads);
    float sum = 0.0F;
    Matrix out(300, 130), d_x(300, 130);
    ops_->forward(stream_, std::vector<MixTerm>{{x.tensor(), &a}, {d.tensor(), &a}}, out.tensor());
    ops_->backward(stream_, d.tensor(), std::vector<MixTerm>{{x.tensor(), &a}},
                   std::vector<MixGradient>{{d_x.tensor(), false, &sum}});
    if (threads == 1) {
      first = sum;
      first_out = out;
      first_d_x = d_x;
    }
    EXPECT_EQ(sum, first);
    EXPECT_TRUE(out.same_bits(first_out));
    EXPECT_TRUE(d_x.same_bits(first_d_x));
  }
  omp_set_num_threads(before);
}

TEST_F(Mix, other_numbers_of_terms_are_refused) {
  Matrix x(1, 1);
  EXPECT_THROW(ops_->forward(stream_, {}, x.tensor()), std::logic_error);
  const std::vector<MixTerm> three(3, MixTerm{x.tensor()});
  EXPECT_THROW(ops_->forward(stream_, three, x.tensor()), std::logic_error);
  EXPECT_THROW(ops_->backward(stream_, x.tensor(), std::vector<MixTerm>{{x.tensor()}}, {}), std::logic_error);
}

}  // namespace
}  // namespace polaron::test
