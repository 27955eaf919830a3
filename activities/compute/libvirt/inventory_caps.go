package libvirt

import (
	"math"
	"slices"
	"strings"

	"libvirt.org/go/libvirtxml"

	"github.com/nextstack/nextstack/api"
)

// hostUUID returns the UUID of the machine. Libvirt makes one up where the firmware has none that is worth anything.
func hostUUID(caps *libvirtxml.Caps) string {
	if id := strings.ToLower(caps.Host.UUID); api.IsUUID(id) {
		return id
	}
	return ""
}

// cpuModels returns the names of the processors that guests can have here, sorted. Only a named one means the same on
// another node.
func cpuModels(caps *libvirtxml.DomainCaps) []string {
	var out []string
	if caps.CPU == nil {
		return nil
	}
	for _, mode := range caps.CPU.Modes {
		if mode.Name != "custom" || mode.Supported != "yes" {
			continue
		}
		for _, m := range mode.Models {
			if m.Usable != "no" && isWord(m.Name) {
				out = append(out, m.Name)
			}
		}
	}
	slices.Sort(out)
	out = slices.Compact(out)
	return out[:min(len(out), maxCPUModels)]
}

// numaCells returns the memory nodes of the machine, by ID.
func numaCells(caps *libvirtxml.Caps) []api.NUMACell {
	if caps.Host.NUMA == nil || caps.Host.NUMA.Cells == nil {
		return nil
	}
	var out []api.NUMACell
	for _, c := range caps.Host.NUMA.Cells.Cells {
		cell := api.NUMACell{ID: c.ID, CPUs: []int{}}
		if c.Memory != nil {
			cell.Memory = bytesOf(c.Memory.Size, c.Memory.Unit)
		}
		if c.CPUS != nil {
			for _, cpu := range c.CPUS.CPUs {
				cell.CPUs = append(cell.CPUs, cpu.ID)
			}
		}
		slices.Sort(cell.CPUs)
		cell.CPUs = cell.CPUs[:min(len(cell.CPUs), maxNUMACPUs)]
		out = append(out, cell)
	}
	slices.SortFunc(out, func(a, b api.NUMACell) int { return a.ID - b.ID })
	return out[:min(len(out), maxNUMACells)]
}

// bytesOf returns an amount of memory as libvirt tells it, which is in KiB if it does not say; 0 if it makes no sense.
func bytesOf(n uint64, unit string) int64 {
	units := map[string]int64{"": api.KiB, "b": 1, "bytes": 1, "KiB": api.KiB, "MiB": api.MiB, "GiB": api.GiB, "TiB": api.TiB}
	u, ok := units[unit]
	if !ok || n > uint64(math.MaxInt64/u) {
		return 0
	}
	return int64(n) * u
}
