#!/bin/bash
# All that needs a GPU, in under ten minutes, by worth: benchmarks/gpu.sh [STAGE ...]
#
# Builds the extension in place for the torch and the GPU that are there (one that is there already is taken as it is),
# compares every op with its reference, runs the benchmarks and the tests of a device (a skip counts as a failure), and
# looks for bad accesses and races with compute-sanitizer. Logs and results go to $OUT; the last lines say what has
# failed. What would pass a stage's limit or the whole one is stopped, and has failed; the next stage runs all the same.
#
#   OUT     where everything is written (benchmarks/results/gpu)
#   PYTHON  one that imports torch (python3)
#   DATA    a folder with the files of Fashion-MNIST; without it, its embedded part is searched
#   COMMIT  which commit this is, where there is no git
#   LIMIT   seconds for everything (580)
set -u
cd "$(dirname "$0")/.."
LIMIT=${LIMIT:-580}
PYTHON=${PYTHON:-python3}
mkdir -p "${OUT:=benchmarks/results/gpu}"
OUT=$(realpath "$OUT")
COMMIT=${COMMIT:-$(git rev-parse --short HEAD 2>/dev/null)}
export OUT COMMIT PYTHONPATH=$PWD PYTHONUNBUFFERED=1 AMUN_REQUIRE_CUDA=1 AMUN_REQUIRE_NVCC=1
export AMUN_TEST_SEED=${AMUN_TEST_SEED:-random}
wanted=" ${*:-build smoke ops search paper device memcheck racecheck ops_tests} "
failed=()

# stage NAME SECONDS COMMAND...: into $OUT/NAME.log
stage() {
  local name=$1 most=$2 before=$SECONDS code=124
  shift 2
  [[ $wanted == *" $name "* ]] || return 0
  ((most > LIMIT - SECONDS)) && most=$((LIMIT - SECONDS))
  if ((most > 0)); then
    timeout $most "$@" >"$OUT/$name.log" 2>&1
    code=$?
  fi
  ((code == 0)) || failed+=("$name ($code)")
  printf '%-10s %3d s, exit %d: %s\n' "$name" $((SECONDS - before)) $code "$(tail -n 1 "$OUT/$name.log" 2>/dev/null)"
}

CAPABILITY=$($PYTHON -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())') || exit 1
export FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=$CAPABILITY
[[ -e amun_ext/_C.abi3.so ]] || stage build 300 $PYTHON setup.py --quiet build_ext --inplace
((${#failed[@]} == 0)) || { tail -n 30 "$OUT/build.log"; exit 1; }

pytest=($PYTHON -m pytest -q -p no:cacheprovider -W default)
several=()
$PYTHON -c 'import xdist' 2>/dev/null && several=(-n 8)
(
  cd python_tests
  grep -l '\bdevice\b' test_*.py | grep -v -e test_cuda -e test_gpu -e test_cli -e test_report
) | sed 's,^,python_tests/,' >"$OUT/device_tests.txt"

stage smoke 60 $PYTHON benchmarks/bench_gpu_ops.py --small
stage ops 100 $PYTHON benchmarks/bench_gpu_ops.py
stage search 200 $PYTHON benchmarks/bench_gpu_search.py ${DATA:+--data "$DATA"}
stage paper 330 $PYTHON benchmarks/bench_gpu_paper.py ${DATA:+--data "$DATA"} ${PAPER:-}
stage device 120 "${pytest[@]}" python_tests/test_cuda_device.py
small='(does_not_depend and not 224 and (float32 or bfloat16)) or current_device'
for tool in memcheck racecheck; do
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 stage $tool 80 compute-sanitizer --tool $tool --error-exitcode 9 \
    "${pytest[@]}" python_tests/test_cuda_device.py -k "$small"
done

stage ops_tests 150 "${pytest[@]}" "${several[@]}" -k '[cuda' $(cat "$OUT/device_tests.txt")
for name in device ops_tests; do
  [[ $wanted == *" $name "* ]] && grep -q ' skipped' "$OUT/$name.log" && failed+=("tests were skipped ($name)")
done

for name in ops search paper; do
  [[ $wanted == *" $name "* ]] && tail -n 45 "$OUT/$name.log"
done
echo "${#failed[@]} failed: ${failed[*]-}"
exit $((${#failed[@]} > 0))
