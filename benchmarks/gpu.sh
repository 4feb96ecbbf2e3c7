#!/bin/bash
# All that needs a GPU, in under ten minutes: benchmarks/gpu.sh
#
# Builds the extension in place for the torch and the GPU that are there, runs the tests of a device (a skip counts as a
# failure) and the benchmarks, and looks for bad accesses and races with compute-sanitizer. Logs and results go to $OUT;
# the last lines say what has failed. What would pass the limit is stopped, and has failed.
#
#   OUT     where everything is written (benchmarks/results/gpu)
#   PYTHON  one that imports torch (python3)
#   DATA    a folder with the files of Fashion-MNIST; without it, its embedded part is searched
#   COMMIT  which commit this is, where there is no git
set -u
cd "$(dirname "$0")/.."
LIMIT=580
PYTHON=${PYTHON:-python3}
mkdir -p "${OUT:=benchmarks/results/gpu}"
OUT=$(realpath "$OUT")
COMMIT=${COMMIT:-$(git rev-parse --short HEAD 2>/dev/null)}
export OUT COMMIT PYTHONPATH=$PWD AMUN_REQUIRE_CUDA=1 AMUN_REQUIRE_NVCC=1 AMUN_TEST_SEED=${AMUN_TEST_SEED:-$(date +%s)}
failed=()

# stage NAME COMMAND...: into $OUT/NAME.log
stage() {
  local name=$1 before=$SECONDS code=124
  shift
  if ((SECONDS < LIMIT)); then
    timeout $((LIMIT - SECONDS)) "$@" >"$OUT/$name.log" 2>&1
    code=$?
  fi
  ((code == 0)) || failed+=("$name ($code)")
  printf '%-10s %3d s, exit %d: %s\n' "$name" $((SECONDS - before)) $code "$(tail -n 1 "$OUT/$name.log" 2>/dev/null)"
}

CAPABILITY=$($PYTHON -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())') || exit 1
export FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=$CAPABILITY
stage build $PYTHON setup.py --quiet build_ext --inplace
((${#failed[@]} == 0)) || { tail -n 30 "$OUT/build.log"; exit 1; }

pytest=($PYTHON -m pytest -q -p no:cacheprovider -W default)
several=()
$PYTHON -c 'import xdist' 2>/dev/null && several=(-n 8)
(
  cd python_tests
  grep -l '\bdevice\b' test_*.py | grep -v -e test_cuda -e test_gpu -e test_cli -e test_report
) | sed 's,^,python_tests/,' >"$OUT/device_tests.txt"
stage device "${pytest[@]}" python_tests/test_cuda_device.py
stage ops_tests "${pytest[@]}" "${several[@]}" -k '[cuda' $(cat "$OUT/device_tests.txt")
grep -q ' skipped' "$OUT/device.log" "$OUT/ops_tests.log" && failed+=("tests were skipped")

stage ops $PYTHON benchmarks/bench_gpu_ops.py
stage search $PYTHON benchmarks/bench_gpu_search.py ${DATA:+--data "$DATA"}

small='(does_not_depend and not 224 and (float32 or bfloat16)) or current_device'
for tool in memcheck racecheck; do
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 stage $tool compute-sanitizer --tool $tool --error-exitcode 9 \
    "${pytest[@]}" python_tests/test_cuda_device.py -k "$small"
done

cat "$OUT/ops.log"
tail -n 40 "$OUT/search.log"
echo "${#failed[@]} failed: ${failed[*]-}"
exit $((${#failed[@]} > 0))
