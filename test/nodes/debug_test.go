package nodes

import (
	"os/exec"
	"testing"
)

func debugCopy(t *testing.T, w *world) {
	if !t.Failed() {
		return
	}
	out, err := exec.Command("bash", "-c", `d=/tmp/miglogs/s.$$; mkdir -p $d; cd "$1"; find . -maxdepth 4 -name '*.log*' -size -20M -exec cp --parents {} $d \\; ; for n in node1 node2 node3; do cp -r --parents $n/log $d; done; ps axww -o pid,lstart,stat,wchan,args | grep -E 'ovs|ovn' > $d/ps; find . -maxdepth 3 > $d/tree; ls -la $d`, "x", w.Path("s")).CombinedOutput()
	t.Logf("%s %v", out, err)
}
