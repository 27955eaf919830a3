package domain_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"libvirt.org/go/libvirtxml"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/compute/domain"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

var update = flag.Bool("update", false, "write the golden files anew")

func plan() steps.VMPlan {
	return steps.VMPlan{
		VM: "6f1d2a34-0c5b-4e6f-8a7b-9c0d1e2f3a4b", Name: "web", Project: "default", VCPUs: 2, Memory: 512 * api.MiB, Hostname: "web",
		Disk: steps.DiskPlan{Volume: "11111111-2222-4333-8444-555555555555", PoolPath: "/vms", Size: api.GiB},
		NICs: []steps.NICPlan{{Port: "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee", MAC: "52:54:00:00:00:01"}},
	}
}

var files = compute.DomainFiles{Disk: compute.QCOW2("/vms/volumes/11111111-2222-4333-8444-555555555555.qcow2"), Seed: compute.Raw("/vms/seeds/6f1d2a34-0c5b-4e6f-8a7b-9c0d1e2f3a4b.iso")}

func TestGolden(t *testing.T) {
	many := plan()
	many.VCPUs = 16
	ha := plan()
	ha.HA, ha.CPUModel = true, "Westmere"
	more := plan()
	more.Disk.QoS = api.VolumeQoS{Bandwidth: 10 * api.MiB, BandwidthBurst: 20 * api.MiB}
	more.Data = []steps.DataDisk{
		{Volume: "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeee1", Device: "vdc", QoS: api.VolumeQoS{IOPS: 100, IOPSBurst: 200}},
		{Volume: "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeee2", Device: "vdd", ReadOnly: true, Shareable: true},
	}
	moreFiles := files
	moreFiles.Data = []compute.DiskSource{compute.QCOW2("/vms/volumes/one.qcow2"), compute.Raw("/slow/two.raw")}
	image := func(name string) compute.DiskSource {
		return compute.DiskSource{Format: api.FormatRaw, RBD: &compute.RBDImage{
			Monitors: []string{"10.0.0.1", "10.0.0.2:3300", "[fd00::3]:6789"}, Pool: "vms", Image: name, User: "libvirt", Secret: "22222222-2222-4333-8444-555555555555",
		}}
	}
	cluster := compute.DomainFiles{Disk: image("disk-11111111-2222-4333-8444-555555555555"), Seed: image("seed-6f1d2a34-0c5b-4e6f-8a7b-9c0d1e2f3a4b")}
	bare := plan()
	bare.NICs, bare.VCPUs = nil, 1
	for name, c := range map[string]struct {
		plan  steps.VMPlan
		files compute.DomainFiles
		host  domain.Host
	}{
		"x86_64-tcg":  {plan(), files, domain.Host{Arch: "x86_64", Accel: domain.TCG, Emulator: "/usr/bin/qemu-system-x86_64", Machine: "pc-i440fx-7.2", CPUModel: "qemu64", UserspaceDP: true, DirectIO: true, ConsoleDir: "/var/lib/nextstack/consoles"}},
		"x86_64-kvm":  {plan(), files, domain.Host{Arch: "x86_64", Accel: domain.KVM, Emulator: "/usr/bin/qemu-system-x86_64", Machine: "pc-i440fx-7.2", CPUModel: domain.HostModel, EFI: true, DirectIO: true, ConsoleDir: "/var/lib/nextstack/consoles"}},
		"x86_64-ha":   {ha, files, domain.Host{Arch: "x86_64", Accel: domain.KVM, Emulator: "/usr/bin/qemu-system-x86_64", Machine: "pc-i440fx-7.2", CPUModel: domain.HostModel, DirectIO: true}},
		"x86_64-data": {more, moreFiles, domain.Host{Arch: "x86_64", Accel: domain.TCG, Emulator: "/usr/bin/qemu-system-x86_64", Machine: "pc-i440fx-7.2", DirectIO: true, Buffered: []string{"/slow/two.raw"}}},
		"x86_64-q35":  {more, moreFiles, domain.Host{Arch: "x86_64", Accel: domain.KVM, Emulator: "/usr/bin/qemu-system-x86_64", Machine: "pc-q35-7.2", CPUModel: domain.HostModel, DirectIO: true}},
		"x86_64-rbd":  {plan(), cluster, domain.Host{Arch: "x86_64", Accel: domain.KVM, Emulator: "/usr/bin/qemu-system-x86_64", Machine: "pc-i440fx-7.2", CPUModel: domain.HostModel}},
		"x86_64-bare": {bare, compute.DomainFiles{Disk: files.Disk}, domain.Host{Arch: "x86_64", Accel: domain.TCG, Emulator: "/usr/bin/qemu-system-x86_64", Machine: "pc-i440fx-7.2"}},
		"aarch64-tcg": {many, files, domain.Host{Arch: "aarch64", Accel: domain.TCG, Emulator: "/usr/bin/qemu-system-aarch64", Machine: "virt-7.2", CPUModel: "cortex-a72", EFI: true, DirectIO: true, UserspaceDP: true}},
		"aarch64-kvm": {plan(), files, domain.Host{Arch: "aarch64", Accel: domain.KVM, Emulator: "/usr/bin/qemu-system-aarch64", Machine: "virt-7.2", CPUModel: domain.HostPassthrough, EFI: true, DirectIO: true}},
		"riscv64-tcg": {plan(), files, domain.Host{Arch: "riscv64", Accel: domain.TCG, Emulator: "/usr/bin/qemu-system-riscv64", Machine: "virt", DirectIO: true}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := domain.XML(c.plan, c.files, c.host)
			require.NoError(t, err)
			golden := filepath.Join("testdata", name+".xml")
			if *update {
				require.NoError(t, os.WriteFile(golden, []byte(got+"\n"), 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err, "run the test with -update to make it")
			require.Equal(t, string(want), got+"\n")
		})
	}
}

func TestHostileNamesStayInTheirAttribute(t *testing.T) {
	p := plan()
	p.Name = `x"/><os><kernel>/etc/shadow</kernel></os><!--` + "\n"
	p.Project = `a'b&c<d>`
	s, err := domain.XML(p, files, domain.Host{Arch: "x86_64", Accel: domain.TCG, Emulator: "/q", Machine: "pc"})
	require.NoError(t, err)
	var d libvirtxml.Domain
	require.NoError(t, d.Unmarshal(s))
	require.Empty(t, d.OS.Kernel)
	require.NotContains(t, d.Title, "\n")
	require.NotContains(t, d.Metadata.XML, "<kernel>")
}

func TestPlansThatCannotWorkAreRefused(t *testing.T) {
	host := domain.Host{Arch: "x86_64", Emulator: "/q", Machine: "pc"}
	for what, breakIt := range map[string]func(*steps.VMPlan, *compute.DomainFiles, *domain.Host){
		"id":     func(p *steps.VMPlan, _ *compute.DomainFiles, _ *domain.Host) { p.VM = "../x" },
		"vcpus":  func(p *steps.VMPlan, _ *compute.DomainFiles, _ *domain.Host) { p.VCPUs = 0 },
		"memory": func(p *steps.VMPlan, _ *compute.DomainFiles, _ *domain.Host) { p.Memory = 1 },
		"disk":   func(_ *steps.VMPlan, f *compute.DomainFiles, _ *domain.Host) { f.Disk = compute.Raw("disk") },
		"seed":   func(_ *steps.VMPlan, f *compute.DomainFiles, _ *domain.Host) { f.Seed = compute.Raw("seed") },
		"data":   func(p *steps.VMPlan, _ *compute.DomainFiles, _ *domain.Host) { p.Data = []steps.DataDisk{{}} },
		"device": func(p *steps.VMPlan, f *compute.DomainFiles, _ *domain.Host) {
			p.Data = []steps.DataDisk{{Volume: p.Disk.Volume, Device: "vda"}}
			f.Data = []compute.DiskSource{compute.QCOW2("/x")}
		},
		"twice": func(p *steps.VMPlan, f *compute.DomainFiles, _ *domain.Host) {
			p.Data = []steps.DataDisk{{Volume: p.Disk.Volume, Device: "vdc"}, {Volume: p.VM, Device: "vdc"}}
			f.Data = []compute.DiskSource{compute.QCOW2("/x"), compute.QCOW2("/y")}
		},
		"port": func(p *steps.VMPlan, _ *compute.DomainFiles, _ *domain.Host) { p.NICs[0].Port = "eth0" },
		"host": func(_ *steps.VMPlan, _ *compute.DomainFiles, h *domain.Host) { h.Machine = "" },
	} {
		t.Run(what, func(t *testing.T) {
			p, f, h := plan(), files, host
			breakIt(&p, &f, &h)
			_, err := domain.XML(p, f, h)
			require.Equal(t, problem.Invalid, problem.KindOf(err), "%v", err)
		})
	}
}

func TestDisksAreFound(t *testing.T) {
	const live = `<domain><devices>
	  <disk type='file' device='disk'><source file='/a'/><target dev='vda'/><serial>11111111222243338444</serial></disk>
	  <disk type='file' device='disk'><source file='/top' index='4'/>
	    <backingStore type='file' index='3'><format type='qcow2'/><source file='/middle'/>
	      <backingStore type='file' index='2'><format type='qcow2'/><source file='/first'/><backingStore/></backingStore></backingStore>
	    <mirror type='file' job='active-commit' ready='yes'><source file='/middle'/></mirror>
	    <target dev='vdc'/><serial>aaaaaaaabbbb4ccc8ddd</serial></disk>
	  <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel>
	</devices></domain>`
	d, err := domain.FindDisk(live, "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee")
	require.NoError(t, err)
	require.Equal(t, "vdc", d.Device)
	require.Equal(t, []string{"/top", "/middle", "/first"}, d.Chain)
	require.True(t, d.Ready)
	s, err := d.PlacedXML(compute.QCOW2("/new"), true)
	require.NoError(t, err)
	require.Contains(t, s, "/new")
	require.NotContains(t, s, "/middle")
	d, err = domain.FindDisk(live, "aaaaaaab-bbbb-4ccc-8ddd-eeeeeeeeeeee")
	require.NoError(t, err)
	require.Nil(t, d)
	require.True(t, domain.Listens(live))
	require.False(t, domain.Listens(strings.Replace(live, "connected", "disconnected", 1)))
	s, err = domain.SnapshotXML(live, "vdc", compute.QCOW2("/new"))
	require.NoError(t, err)
	require.Contains(t, s, `<disk name="vda" snapshot="no">`)
	require.NotContains(t, s, "/top")
}

func TestTapNamesFit(t *testing.T) {
	require.Equal(t, "tapaaaaaaaabbb", domain.TapName("aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee"))
	require.LessOrEqual(t, len(domain.TapName("aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee")), 15)
}
