package stack

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

// QEMU is a running process of a VM.
type QEMU struct {
	Host string // name; empty: it is in no node of this stack that has power
	PID  int
}

// QEMUs returns all processes on this machine that run the VM, by host and PID, whatever libvirt knows of them. During a move
// there are two, of which one does not run the guest yet.
func (s *Stack) QEMUs(vm string) ([]QEMU, error) {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	hosts := map[string]string{}
	for _, h := range s.Hosts {
		if ns := h.mounts(); ns != "" {
			hosts[ns] = h.Name
		}
	}
	var out []QEMU
	for _, f := range files {
		line, err := os.ReadFile(f)
		// One that has ended meanwhile has none, and neither has a zombie.
		if err != nil || !bytes.Contains(line, []byte("\x00-uuid\x00"+vm+"\x00")) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f)))
		if err != nil {
			return nil, err
		}
		ns, err := os.Readlink(filepath.Join(filepath.Dir(f), "ns", "mnt"))
		if err != nil {
			continue
		}
		out = append(out, QEMU{hosts[ns], pid})
	}
	slices.SortFunc(out, func(a, b QEMU) int { return a.PID - b.PID })
	return out, nil
}
