#include "commands/commands.h"

int main(int argc, char** argv) { return polaron::run_command_line(argc, argv); }
