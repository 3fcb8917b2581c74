# Scores /images on the workers of the cluster whose head this runs on.
set -eu
out=/scores/ray
if [ -e "$out/_manifest.json" ]; then resume=--resume; else resume=; fi
exec fivecrop score /images --model cifar10-airbench --model-repository /models --out "$out" --engine ray --address 127.0.0.1:6379 $resume
