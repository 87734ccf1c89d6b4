#!/bin/bash
set -e
ctx instance runtime-properties message "${greeting} from $(ctx instance id)"
ctx logger info "will listen on ${port}"
