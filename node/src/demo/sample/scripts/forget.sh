#!/bin/bash
set -e
ctx logger info "forgetting $(ctx instance id)"
