#include "config/config.h"

#include <cstdio>

#include "commands/commands.h"

namespace polaron {

Exit run_config(const ConfigCommand& command) {
  const std::string text = command.markdown ? config_reference_markdown()
                           : command.schema ? config_json_schema()
                                            : to_json(load_config(command.config, command.overrides));
  std::fputs(text.c_str(), stdout);
  if (text.empty() || text.back() != '\n') std::fputs("\n", stdout);
  return Exit::done;
}

}  // namespace polaron
