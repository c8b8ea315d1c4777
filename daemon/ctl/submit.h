#pragma once

/*
 * `sluicectl submit`: jobs from arguments, files or standard input to a
 * running service. Returns the exit code.
 */

int submit_main(int argc, char **argv);
