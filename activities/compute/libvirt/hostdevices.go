package libvirt

import (
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/nextstack/nextstack/api"
)

// maxDevices bounds the PCI devices of an inventory.
const maxDevices = 128

// Classes of PCI devices that guests may want for themselves one day, by the first of their three bytes.
const (
	pciDisplay     = "0x03"
	pciAccelerator = "0x12"
)

var (
	pciAddress = regexp.MustCompile(`^[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]$`)
	pciClass   = regexp.MustCompile(`^0x[0-9a-f]{6}$`)
	pciID      = regexp.MustCompile(`^0x[0-9a-f]{4}$`)
)

// hostDevices returns the display controllers and accelerators on the PCI buses, by address. What they are called is left to
// who reads their numbers.
func hostDevices(root fs.FS) []api.HostDevice {
	const dir = "sys/bus/pci/devices"
	var out []api.HostDevice
	for _, address := range entries(root, dir) {
		if !pciAddress.MatchString(address) {
			continue
		}
		class := word(root, path.Join(dir, address, "class"))
		if !pciClass.MatchString(class) || !strings.HasPrefix(class, pciDisplay) && !strings.HasPrefix(class, pciAccelerator) {
			continue
		}
		d := api.HostDevice{
			Address: address, Class: class, Vendor: pciNumber(root, path.Join(dir, address, "vendor")),
			Product: pciNumber(root, path.Join(dir, address, "device")),
		}
		if to, err := fs.ReadLink(root, path.Join(dir, address, "driver")); err == nil && isWord(path.Base(to)) {
			d.Driver = path.Base(to)
		}
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b api.HostDevice) int { return strings.Compare(a.Address, b.Address) })
	return out[:min(len(out), maxDevices)]
}

// pciNumber returns 10de for a file that holds 0x10de.
func pciNumber(root fs.FS, name string) string {
	s := word(root, name)
	if !pciID.MatchString(s) {
		return ""
	}
	return strings.TrimPrefix(s, "0x")
}
