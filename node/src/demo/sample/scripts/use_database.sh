#!/bin/bash
set -e
url="$(ctx target instance runtime-properties url)"
ctx source instance runtime-properties database_url "$url"
ctx logger info "connected to $url"
