package libvirt

import (
	"encoding/binary"
	"io/fs"
	"net"
	"path"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/nextstack/nextstack/api"
)

const (
	maxNICs  = 64
	maxMTU   = 1 << 20
	maxSpeed = 100_000_000 // Mbit/s; a driver that does not know tells 4294967295
)

// hostNICs returns the interfaces that the node itself lives by, by name: physical ones, bonds, and whatever else has an
// address of its own. So taps and veths of guests are left out, and the inner parts of switches; a bridge that carries the
// node's address is in. Own are the indexes of the interfaces with addresses.
func hostNICs(root fs.FS, own map[int]bool) []api.HostNIC {
	const dir = "sys/class/net"
	var out []api.HostNIC
	for _, name := range entries(root, dir) {
		at := path.Join(dir, name)
		if name == "lo" || len(name) >= unix.IFNAMSIZ || !isWord(name) || !exists(root, path.Join(at, "ifindex")) {
			continue // also files like bonding_masters
		}
		physical := exists(root, path.Join(at, "device")) && !exists(root, path.Join(at, "device/physfn")) // the part of a NIC that is cut off for a guest is none
		if !physical && !exists(root, path.Join(at, "bonding")) {
			if index, ok := number(root, path.Join(at, "ifindex")); !ok || !own[int(index)] {
				continue
			}
		}
		n := api.HostNIC{Name: name, Up: isUp(root, at)}
		if mac, err := net.ParseMAC(word(root, path.Join(at, "address"))); err == nil && len(mac) == 6 {
			n.MAC = mac.String()
		}
		if mtu, ok := number(root, path.Join(at, "mtu")); ok && mtu > 0 && mtu <= maxMTU {
			n.MTU = int(mtu)
		}
		if speed, ok := number(root, path.Join(at, "speed")); ok && speed > 0 && speed <= maxSpeed {
			n.Speed = int(speed)
		}
		out = append(out, n)
	}
	slices.SortFunc(out, func(a, b api.HostNIC) int { return strings.Compare(a.Name, b.Name) })
	return out[:min(len(out), maxNICs)]
}

// isUp reports whether packets can pass. Some virtual interfaces do not know of their state and only have a carrier.
func isUp(root fs.FS, at string) bool {
	switch word(root, path.Join(at, "operstate")) {
	case "up":
		return true
	case "unknown":
		return word(root, path.Join(at, "carrier")) == "1"
	default:
		return false
	}
}

// addressed returns the indexes of the interfaces that have an address which others can reach. It asks for all addresses at
// once: package net would do so for each interface again, and a node has thousands.
func addressed() map[int]bool {
	rib, err := syscall.NetlinkRIB(unix.RTM_GETADDR, unix.AF_UNSPEC)
	if err != nil {
		return nil
	}
	messages, err := syscall.ParseNetlinkMessage(rib)
	if err != nil {
		return nil
	}
	out := map[int]bool{}
	for _, m := range messages {
		if m.Header.Type != unix.RTM_NEWADDR || len(m.Data) < unix.SizeofIfAddrmsg {
			continue
		}
		// struct ifaddrmsg: family, prefixlen, flags, scope; index
		if scope := m.Data[3]; scope < unix.RT_SCOPE_LINK { // not one of its link only, as every interface has in IPv6
			out[int(binary.NativeEndian.Uint32(m.Data[4:8]))] = true
		}
	}
	return out
}
