package domain_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"libvirt.org/go/libvirtxml"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/compute/domain"
	"github.com/nextstack/nextstack/api/problem"
)

// TestTransplant: a guest that an older agent started with another CPU, machine and set of devices keeps them; what concerns
// the node alone becomes the new node's.
func TestTransplant(t *testing.T) {
	old, err := domain.XML(plan(), files, domain.Host{Arch: "x86_64", Accel: domain.TCG, Emulator: "/old/qemu", Machine: "pc-i440fx-5.2", CPUModel: "qemu64", DirectIO: true, ConsoleDir: "/old"})
	require.NoError(t, err)
	old = strings.Replace(old, "<memballoon", "<watchdog model='i6300esb'/><memballoon", 1)
	there := compute.DomainFiles{Disk: compute.QCOW2("/new/disk.qcow2"), Seed: compute.Raw("/new/seed.iso")}
	now, err := domain.XML(plan(), there, domain.Host{Arch: "x86_64", Accel: domain.TCG, Emulator: "/new/qemu", Machine: "pc-i440fx-7.2", CPUModel: "Nehalem", UserspaceDP: true, ConsoleDir: "/new"})
	require.NoError(t, err)
	s, err := domain.Transplant(old, now)
	require.NoError(t, err)
	var d libvirtxml.Domain
	require.NoError(t, d.Unmarshal(s))
	require.Equal(t, "pc-i440fx-5.2", d.OS.Type.Machine)
	require.Equal(t, "qemu64", d.CPU.Model.Value)
	require.Len(t, d.Devices.Watchdogs, 1)
	require.Nil(t, d.Devices.Interfaces[0].Driver, "the guest has been promised its offloads")
	require.Equal(t, "/new/qemu", d.Devices.Emulator)
	require.Equal(t, there.Disk.File, d.Devices.Disks[0].Source.File.File)
	require.Equal(t, "writeback", d.Devices.Disks[0].Driver.Cache, "the other file system cannot do more")
	require.Equal(t, there.Seed.File, d.Devices.Disks[1].Source.File.File)
	require.Equal(t, "/new/6f1d2a34-0c5b-4e6f-8a7b-9c0d1e2f3a4b.log", d.Devices.Serials[0].Log.File)
	require.NotContains(t, s, "/old")
	require.NotContains(t, s, "/vms")

	without, err := domain.XML(plan(), compute.DomainFiles{Disk: there.Disk}, domain.Host{Arch: "x86_64", Emulator: "/new/qemu", Machine: "pc"})
	require.NoError(t, err)
	_, err = domain.Transplant(old, without)
	require.Equal(t, problem.Conflict, problem.KindOf(err), "a disk that nobody plans: %v", err)
	_, err = domain.Transplant("<domain", now)
	require.Error(t, err)
}

func TestGuestOf(t *testing.T) {
	s, err := domain.XML(plan(), files, domain.Host{Arch: "x86_64", Accel: domain.KVM, Emulator: "/q", Machine: "pc-i440fx-7.2", CPUModel: domain.HostPassthrough})
	require.NoError(t, err)
	g, err := domain.GuestOf(s)
	require.NoError(t, err)
	require.Equal(t, []string{domain.KVM, "x86_64", "pc-i440fx-7.2"}, []string{g.Accel, g.Arch, g.Machine})
	require.True(t, g.OwnCPU)
	require.Contains(t, g.CPU, "<cpu")
	require.Empty(t, g.Blockers)
	g, err = domain.GuestOf(strings.Replace(s, "<memballoon", "<disk type='file' device='disk'><source file='/x'/><target dev='vdc' bus='virtio'/><serial>aaaaaaaabbbb4ccc8ddd</serial></disk><memballoon", 1))
	require.NoError(t, err)
	require.Empty(t, g.Blockers, "a volume may be in a shared pool: that is seen in the plan")
	for device, says := range map[string]string{
		"<hostdev mode='subsystem' type='pci'><source><address domain='0' bus='1' slot='0' function='0'/></source></hostdev>":   "device",
		"<filesystem type='mount'><source dir='/x'/><target dir='x'/></filesystem>":                                             "directory",
		"<disk type='file' device='disk'><source file='/x'/><target dev='vdc' bus='virtio'/></disk>":                            "disk",
		"<interface type='hostdev'><source><address type='pci' domain='0' bus='1' slot='0' function='0'/></source></interface>": "network interface",
	} {
		g, err := domain.GuestOf(strings.Replace(s, "<memballoon", device+"<memballoon", 1))
		require.NoError(t, err)
		require.Len(t, g.Blockers, 1, device)
		require.Contains(t, g.Blockers[0], says)
	}
}

func TestMark(t *testing.T) {
	for _, m := range []domain.Mark{{VM: "1", Project: "p", Name: `x"/><y`, HA: true}, {VM: "2", Project: "a&b", Name: "web"}} {
		got, err := domain.ReadMark(m.Element())
		require.NoError(t, err)
		require.Equal(t, m, got)
	}
	_, err := domain.ReadMark("<vm")
	require.Error(t, err)
}
