#!/bin/bash
set -e
ctx logger info "reserving ${memory_mib} MiB"
ctx instance runtime-properties address "192.0.2.$(( 10 + RANDOM % 200 ))"
ctx instance runtime-properties memory_mib "@${memory_mib}"
