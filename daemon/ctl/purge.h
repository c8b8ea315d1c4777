#pragma once

/*
 * `sluicectl purge`: removes the queues and runtime files of an instance that
 * is not running. Jobs in them are lost, so that needs --force. Returns the
 * exit code.
 */

int purge_main(int argc, char **argv);
