#include "base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

namespace polaron::log {
namespace {

spdlog::logger& logger() {
  static const auto instance = [] {
    auto made = spdlog::stderr_color_mt("polaron");
    made->set_pattern("%^%v%$");
    return made;
  }();
  return *instance;
}

}  // namespace

void info(const std::string& message) { logger().info(message); }
void warn(const std::string& message) { logger().warn("warning: " + message); }
void error(const std::string& message) { logger().error("error: " + message); }

void set_rank(int rank) {
  if (rank != 0) logger().set_level(spdlog::level::err);
}

}  // namespace polaron::log
