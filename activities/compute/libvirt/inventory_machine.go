package libvirt

import (
	"bufio"
	"context"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nextstack/nextstack/api"
)

// Inventories are stored whenever they differ from the last one, and sent every few seconds: so their lists have an end, and
// what never stands still is told in steps.
const (
	maxCPUModels = 256
	maxCPUFlags  = 512
	maxNUMACells = 256
	maxNUMACPUs  = 1024 // of one cell
	maxHugeSizes = 16
	maxMemory    = 1024 * api.TiB // of a machine; more is nonsense

	// grain is the step in which memory that is free or used is told.
	grain = 16 * api.MiB
	// coarse is the part of a machine's memory that used memory has to change by before it is told anew.
	coarse = 512
	// devicesEvery is how often NICs and devices are looked at: they hardly ever change, and some drivers take their time.
	devicesEvery = 30 * time.Second
	// devicesWait is how long an inventory waits for the first look at them. A driver that hangs must hold up no report.
	devicesWait = time.Second
)

// machine is what the kernel tells of the node. The zero value is the node that this process runs on.
type machine struct {
	root fs.FS               // what is at /; nil: the real one
	own  func() map[int]bool // nil: addressed

	mu      sync.Mutex
	used    int64           // memory, as it was last told
	devices *machineDevices // of the last look; nil: there was none
	looked  time.Time       // when the last look began
	looking chan struct{}   // closed when the look that is under way is over; nil: none is
}

type machineDevices struct {
	nics    []api.HostNIC
	devices []api.HostDevice
}

// fill adds to an inventory what libvirt is not asked about.
func (m *machine) fill(ctx context.Context, inv *api.Inventory) {
	root := m.files()
	inv.HugePages = hugePages(root)
	inv.UsedMemory = m.usedMemory(root, inv.Memory)
	inv.NICs, inv.Devices = m.look(ctx, root)
}

func (m *machine) files() fs.FS {
	if m.root != nil {
		return m.root
	}
	return os.DirFS("/")
}

// look returns NICs and devices as they were lately, and looks again in the background if that was too long ago.
func (m *machine) look(ctx context.Context, root fs.FS) ([]api.HostNIC, []api.HostDevice) {
	m.mu.Lock()
	if m.looking == nil && time.Since(m.looked) >= devicesEvery {
		m.looking, m.looked = make(chan struct{}), time.Now()
		go func() {
			own := addressed
			if m.own != nil {
				own = m.own
			}
			d := &machineDevices{hostNICs(root, own()), hostDevices(root)}
			m.mu.Lock()
			defer m.mu.Unlock()
			close(m.looking)
			m.devices, m.looking = d, nil
		}()
	}
	first := m.looking
	if m.devices != nil {
		first = nil
	}
	m.mu.Unlock()
	if first != nil {
		t := time.NewTimer(devicesWait)
		defer t.Stop()
		select {
		case <-first:
		case <-t.C:
		case <-ctx.Done():
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.devices == nil {
		return nil, nil
	}
	return m.devices.nics, m.devices.devices
}

// usedMemory returns how much memory is in use, which is what no new process could have. It is told anew only when it has
// changed by so much that somebody could care.
func (m *machine) usedMemory(root fs.FS, total int64) int64 {
	used, ok := memoryInUse(root)
	m.mu.Lock()
	defer m.mu.Unlock()
	step := max(grain, total/coarse/grain*grain)
	if ok && (used-m.used >= step || m.used-used >= step) {
		m.used = used / grain * grain
	}
	return m.used
}

func memoryInUse(root fs.FS) (used int64, ok bool) {
	var total, available int64 = -1, -1
	eachLine(root, "proc/meminfo", func(line string) bool {
		name, value, _ := strings.Cut(line, ":")
		n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(value, "kB")), 10, 64)
		if err != nil || n < 0 || n > maxMemory/api.KiB {
			return true
		}
		switch name {
		case "MemTotal":
			total = n * api.KiB
		case "MemAvailable":
			available = n * api.KiB
		}
		return total < 0 || available < 0
	})
	return total - available, total >= 0 && available >= 0 && available <= total
}

// hugePages returns what there is of each size of huge pages that there is any of, the smallest size first. What is free is
// told in steps of some MiB, and less rather than more.
func hugePages(root fs.FS) []api.HugePages {
	const dir = "sys/kernel/mm/hugepages"
	var out []api.HugePages
	for _, e := range entries(root, dir) {
		kib, found := strings.CutPrefix(e, "hugepages-")
		kib, isKiB := strings.CutSuffix(kib, "kB")
		size, err := strconv.ParseInt(kib, 10, 64)
		if !found || !isKiB || err != nil || size <= 0 || size > api.TiB/api.KiB {
			continue
		}
		p := api.HugePages{Size: size * api.KiB}
		p.Total, _ = number(root, path.Join(dir, e, "nr_hugepages"))
		free, ok := number(root, path.Join(dir, e, "free_hugepages"))
		if p.Total <= 0 || !ok || free < 0 {
			continue
		}
		p.Free = min(free, p.Total)
		if step := grain / p.Size; step > 1 && p.Free < p.Total {
			p.Free -= p.Free % step
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b api.HugePages) int { return int((a.Size - b.Size) / api.KiB) })
	return out[:min(len(out), maxHugeSizes)]
}

// cpuFlags returns what the first processor says that it can do, as the kernel calls it.
func cpuFlags(root fs.FS) []string {
	set := map[string]bool{}
	eachLine(root, "proc/cpuinfo", func(line string) bool {
		name, value, _ := strings.Cut(line, ":")
		switch strings.ToLower(strings.TrimSpace(name)) {
		case "flags", "features": // x86; ARM and s390
			for _, f := range strings.Fields(value) {
				if isWord(f) {
					set[f] = true
				}
			}
		case "isa": // RISC-V: rv64imafdc_zicsr_zifencei
			for f := range strings.SplitSeq(strings.TrimSpace(value), "_") {
				if isWord(f) {
					set[f] = true
				}
			}
		}
		return len(set) == 0
	})
	flags := slices.Sorted(maps.Keys(set))
	return flags[:min(len(flags), maxCPUFlags)]
}

// The files of the kernel are read with care all the same: a driver may tell anything, and what it tells goes into records.

const (
	maxText = 4096      // bytes of a file with one value
	maxLine = 64 * 1024 // bytes of one line of a file with many
)

// entries returns the names in a directory, sorted; none if it cannot be read.
func entries(root fs.FS, dir string) []string {
	list, err := fs.ReadDir(root, dir)
	if err != nil {
		return nil
	}
	out := make([]string, 0, len(list))
	for _, e := range list {
		out = append(out, e.Name())
	}
	return out
}

// word returns the value in a file if it is a single word of plain characters.
func word(root fs.FS, name string) string {
	f, err := root.Open(name)
	if err != nil {
		return ""
	}
	defer f.Close() //nolint:errcheck // was only read
	b, err := io.ReadAll(io.LimitReader(f, maxText))
	if err != nil {
		return ""
	}
	if s := strings.TrimSpace(string(b)); isWord(s) {
		return s
	}
	return ""
}

// number returns the decimal number in a file.
func number(root fs.FS, name string) (int64, bool) {
	n, err := strconv.ParseInt(word(root, name), 10, 64)
	return n, err == nil
}

func exists(root fs.FS, name string) bool {
	_, err := fs.Stat(root, name)
	return err == nil
}

// eachLine calls do with each line of a file until it returns false.
func eachLine(root fs.FS, name string, do func(string) bool) {
	f, err := root.Open(name)
	if err != nil {
		return
	}
	defer f.Close() //nolint:errcheck // was only read
	s := bufio.NewScanner(f)
	s.Buffer(make([]byte, 0, maxText), maxLine)
	for s.Scan() && do(s.Text()) {
	}
}

// isWord reports whether s is a short word that can be shown and stored as it is.
func isWord(s string) bool {
	return s != "" && len(s) <= 64 && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}
