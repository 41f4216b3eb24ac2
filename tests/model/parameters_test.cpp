#include "model/parameters.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "config/config.h"
#include "model/features.h"
#include "support/tiny_model.h"

namespace polaron {
namespace {

struct PublishedModel {
  const char* file;
  std::int64_t vocabulary;
  std::int64_t parameters;
  std::int64_t matrices;
};

// Parameters of OpenAI's GPT-2 checkpoints (vocabulary 50257, context 1024) and of GaLore's LLaMA shapes (vocabulary
// 32000, untied head, context of the config), and of those the ones in the matrices of blocks.
constexpr PublishedModel kPublished[] = {
    {"gpt2-124m", 50257, 124439808, 12LL * 12 * 768 * 768},
    {"gpt2-350m", 50257, 354823168, 24LL * 12 * 1024 * 1024},
    {"gpt2-774m", 50257, 774030080, 36LL * 12 * 1280 * 1280},
    {"gpt2-1558m", 50257, 1557611200, 48LL * 12 * 1600 * 1600},
    {"llama-60m", 32000, 58073600, 8LL * (4 * 512 * 512 + 3 * 512 * 1376)},
    {"llama-130m", 32000, 134105856, 12LL * (4 * 768 * 768 + 3 * 768 * 2048)},
    {"llama-350m", 32000, 367969280, 24LL * (4 * 1024 * 1024 + 3 * 1024 * 2736)},
    {"llama-1b", 32000, 1339082752, 24LL * (4 * 2048 * 2048 + 3 * 2048 * 5461)},
};

TEST(ParameterTable, counts_the_parameters_of_the_published_models) {
  for (const PublishedModel& published : kPublished) {
    const auto file = std::filesystem::path(POLARON_SOURCE_DIR) / "configs" / (std::string(published.file) + ".json");
    ASSERT_TRUE(std::filesystem::exists(file)) << file;
    TransformerConfig config = load_config(file).model;
    EXPECT_EQ(config.vocabulary, published.vocabulary) << published.file;
    const ParameterTable table(config);
    EXPECT_EQ(table.elements(), published.parameters) << published.file;
    EXPECT_EQ(table.elements(Role::matrix), published.matrices) << published.file;
    std::int64_t of_roles = 0;
    for (const Role role : {Role::matrix, Role::embedding, Role::head, Role::vector, Role::scalar}) {
      of_roles += table.elements(role);
    }
    EXPECT_EQ(of_roles, table.elements());
    EXPECT_GE(table.stored_elements(), table.elements());
  }
}

TEST(ParameterTable, offsets_are_multiples_of_64_and_parameters_do_not_overlap) {
  for (const test::Feature& feature : test::all_features()) {
    const ParameterTable table(feature.config);
    std::int64_t end = 0;
    for (const Parameter& p : table.all()) {
      EXPECT_EQ(p.offset % 64, 0) << p.name;
      EXPECT_GE(p.offset, end) << p.name;
      end = p.offset + p.stored_elements();
    }
    EXPECT_LE(end, table.stored_elements());
  }
}

TEST(ParameterTable, blocks_lie_inside_their_parameter_and_do_not_overlap) {
  for (const test::Feature& feature : test::all_features()) {
    const ParameterTable table(feature.config);
    for (const Parameter& p : table.all()) {
      ASSERT_FALSE(p.blocks.empty()) << p.name;
      std::int64_t end = 0;
      for (const MatrixBlock& block : p.blocks) {
        EXPECT_GE(block.row, end) << p.name;
        EXPECT_GT(block.rows, 0) << p.name;
        end = block.row + block.rows;
      }
      EXPECT_LE(end, p.stored_rows) << p.name;
      EXPECT_LE(p.cols, p.stored_cols) << p.name;
    }
  }
}

TEST(ParameterTable, a_block_is_contiguous_and_names_are_unique) {
  const ParameterTable table(test::tiny_llama());
  std::map<std::string, int> seen;
  int layer = -1;
  for (const Parameter& p : table.all()) {
    EXPECT_EQ(seen[p.name]++, 0) << p.name;
    EXPECT_GE(p.layer, layer) << p.name;
    layer = p.layer;
    EXPECT_EQ(table.index(p.name), static_cast<std::size_t>(&p - table.all().data()));
  }
  EXPECT_EQ(layer, 2);
  EXPECT_FALSE(table.has("blocks.2.norm1.weight"));
  EXPECT_THROW(table.index("blocks.2.norm1.weight"), std::logic_error);
}

TEST(ParameterTable, roles_follow_what_a_tensor_is) {
  const ParameterTable tied(test::tiny_gpt2());
  EXPECT_EQ(tied[tied.index("embedding.token")].role, Role::embedding);
  EXPECT_EQ(tied[tied.index("embedding.position")].role, Role::embedding);
  EXPECT_EQ(tied[tied.index("blocks.0.attention.qkv.weight")].role, Role::matrix);
  EXPECT_EQ(tied[tied.index("blocks.0.attention.qkv.bias")].role, Role::vector);
  EXPECT_EQ(tied[tied.index("final_norm.weight")].role, Role::vector);
  EXPECT_FALSE(tied.has("head.weight"));
  const ParameterTable untied(test::tiny_llama());
  EXPECT_EQ(untied[untied.index("head.weight")].role, Role::head);
  EXPECT_FALSE(untied.has("embedding.position"));
  EXPECT_FALSE(untied.has("blocks.0.attention.qkv.bias"));
}

TEST(ParameterTable, fused_matrices_list_their_blocks) {
  const ParameterTable table(test::tiny_llama());  // 4 query heads and 2 key heads of 8; hidden size 85
  const Parameter& qkv = table[table.index("blocks.1.attention.qkv.weight")];
  ASSERT_EQ(qkv.blocks.size(), 3U);
  EXPECT_EQ(qkv.blocks[0].rows, 32);
  EXPECT_EQ(qkv.blocks[1].rows, 16);
  EXPECT_EQ(qkv.blocks[2].row, 48);
  const Parameter& gate_up = table[table.index("blocks.1.mlp.gate_up.weight")];
  ASSERT_EQ(gate_up.blocks.size(), 2U);
  EXPECT_EQ(gate_up.rows(), 170);
  EXPECT_EQ(gate_up.blocks[1].row, 128);
  EXPECT_EQ(gate_up.stored_rows, 256);
  const Parameter& down = table[table.index("blocks.1.mlp.down.weight")];
  EXPECT_EQ(down.cols, 85);
  EXPECT_EQ(down.stored_cols, 128);
}

// --- initial weights
// --------------------------------------------------------------------------------------------------

std::vector<float> initialized(const ParameterTable& table, std::uint64_t seed) {
  std::vector<float> flat(static_cast<std::size_t>(table.stored_elements()));
  initialize_weights(table, seed, flat.data());
  return flat;
}

TEST(InitialWeights, are_the_same_twice_and_others_with_another_seed) {
  const ParameterTable table(test::tiny_llama());
  EXPECT_EQ(initialized(table, 5), initialized(table, 5));
  EXPECT_NE(initialized(table, 5), initialized(table, 6));
}

TEST(InitialWeights, leave_padding_zero) {
  for (const test::Feature& feature : test::all_features()) {
    const ParameterTable table(feature.config);
    EXPECT_EQ(test::nonzero_padding(table, initialized(table, 5)), 0) << feature.name;
  }
}

// Entry (i, j) of a matrix is the same in a model whose vocabulary and MLP are larger, and so padded differently.
TEST(InitialWeights, do_not_depend_on_padding) {
  TransformerConfig small = test::tiny_llama();
  TransformerConfig large = small;
  large.vocabulary = 200;
  large.mlp_hidden = 85 + 64;
  const ParameterTable of_small(small), of_large(large);
  const std::vector<float> a = initialized(of_small, 5), b = initialized(of_large, 5);
  const auto entry = [](const ParameterTable& table, const std::vector<float>& flat, const std::string& name,
                        std::size_t block, std::int64_t i, std::int64_t j) {
    const Parameter& p = table[table.index(name)];
    return flat[static_cast<std::size_t>(p.offset + (p.blocks[block].row + i) * p.stored_cols + j)];
  };
  for (std::int64_t i = 0; i < 61; ++i) {
    for (std::int64_t j = 0; j < 32; ++j) {
      EXPECT_EQ(entry(of_small, a, "embedding.token", 0, i, j), entry(of_large, b, "embedding.token", 0, i, j));
      EXPECT_EQ(entry(of_small, a, "head.weight", 0, i, j), entry(of_large, b, "head.weight", 0, i, j));
      EXPECT_EQ(entry(of_small, a, "blocks.1.mlp.gate_up.weight", 0, i, j),
                entry(of_large, b, "blocks.1.mlp.gate_up.weight", 0, i, j));
    }
  }
}

TEST(InitialWeights, of_different_tensors_blocks_and_rows_are_unrelated) {
  const ParameterTable table(test::tiny_gpt2());
  const std::vector<float> flat = initialized(table, 5);
  std::vector<float> drawn;
  for (const Parameter& p : table.all()) {
    if (p.init != InitRule::normal) continue;
    test::for_each_element(table, [&](const Parameter& of, const auto&, auto, auto, std::size_t at) {
      if (&of == &p) drawn.push_back(flat[at] / static_cast<float>(p.init_std));
    });
  }
  std::sort(drawn.begin(), drawn.end());
  // Of 2e4 draws rounded to fp32 a few coincide by chance; a stream used twice would make thousands of pairs.
  std::size_t pairs = 0;
  for (std::size_t i = 1; i < drawn.size(); ++i) pairs += drawn[i] == drawn[i - 1] ? 1 : 0;
  EXPECT_LT(pairs, drawn.size() / 100);
}

TEST(InitialWeights, are_normal_with_the_deviation_that_the_config_gives) {
  TransformerConfig config = test::tiny_gpt2();
  config.init_std = 0.05;
  config.width = 256;
  config.head_size = 64;
  config.mlp_hidden = 300;
  config.layers = 8;
  const ParameterTable table(config);
  const std::vector<float> flat = initialized(table, 5);
  for (const Parameter& p : table.all()) {
    std::vector<double> values;
    for (const MatrixBlock& block : p.blocks) {
      for (std::int64_t i = 0; i < block.rows; ++i) {
        for (std::int64_t j = 0; j < p.cols; ++j) {
          values.push_back(flat[static_cast<std::size_t>(p.offset + (block.row + i) * p.stored_cols + j)]);
        }
      }
    }
    if (p.role == Role::vector) {
      const double expected = p.name.find("norm") != std::string::npos && p.name.ends_with(".weight") ? 1.0 : 0.0;
      EXPECT_TRUE(std::all_of(values.begin(), values.end(), [&](double v) { return v == expected; })) << p.name;
      continue;
    }
    const bool output = p.name.ends_with("out.weight") || p.name.ends_with("down.weight");
    const double deviation = output ? 0.05 / std::sqrt(2.0 * 8.0) : 0.05;
    double mean = 0.0, square = 0.0, fourth = 0.0;
    const auto n = static_cast<double>(values.size());
    for (const double v : values) {
      mean += v / deviation / n;
      square += v * v / (deviation * deviation) / n;
      fourth += std::pow(v / deviation, 4) / n;
    }
    // Five standard errors of the mean, the variance and the fourth moment (96 is its variance).
    EXPECT_NEAR(mean, 0.0, 5.0 / std::sqrt(n)) << p.name;
    EXPECT_NEAR(square, 1.0, 5.0 * std::sqrt(2.0 / n)) << p.name;
    EXPECT_NEAR(fourth, 3.0, 5.0 * std::sqrt(96.0 / n)) << p.name;
  }
}

TEST(InitialWeights, of_output_projections_are_not_scaled_where_the_config_says_so) {
  TransformerConfig config = test::tiny_gpt2();
  config.init_scale_residual = false;
  const ParameterTable table(config);
  EXPECT_EQ(table[table.index("blocks.0.mlp.down.weight")].init_std, config.init_std);
  EXPECT_EQ(table[table.index("blocks.1.attention.out.weight")].init_std, config.init_std);
}

}  // namespace
}  // namespace polaron
