package libvirt

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"libvirt.org/go/libvirtxml"

	"github.com/nextstack/nextstack/api"
)

func TestCapabilities(t *testing.T) {
	read := func(s string) (caps libvirtxml.Caps) {
		t.Helper()
		require.NoError(t, caps.Unmarshal("<capabilities><host>"+s+"</host></capabilities>"))
		return caps
	}
	caps := read(`<uuid>4C4C4544-0042-3510-8056-B8C04F565831</uuid><topology><cells num='2'>
		<cell id='1'><memory unit='MiB'>8</memory><cpus num='2'><cpu id='3'/><cpu id='1'/></cpus></cell>
		<cell id='0'><memory unit='KiB'>1024</memory><cpus num='1'><cpu id='0'/></cpus></cell>
		<cell id='2'/>
		<cell id='4'><memory unit='parsec'>7</memory></cell>
		<cell id='5'><memory unit='TiB'>18446744073709551615</memory></cell>
	</cells></topology>`)
	require.Equal(t, "4c4c4544-0042-3510-8056-b8c04f565831", hostUUID(&caps))
	require.Equal(t, []api.NUMACell{
		{ID: 0, Memory: api.MiB, CPUs: []int{0}}, {ID: 1, Memory: 8 * api.MiB, CPUs: []int{1, 3}}, {ID: 2, CPUs: []int{}}, {ID: 4, CPUs: []int{}}, {ID: 5, CPUs: []int{}},
	}, numaCells(&caps))
	empty := read("")
	require.Empty(t, hostUUID(&empty))
	require.Nil(t, numaCells(&empty))
	bad := read("<uuid>../etc</uuid><topology/>")
	require.Empty(t, hostUUID(&bad))
	require.Nil(t, numaCells(&bad))

	huge := strings.Builder{}
	for i := range 3000 {
		fmt.Fprintf(&huge, "<cell id='%d'><cpus>%s</cpus></cell>", i, map[bool]string{true: strings.Repeat("<cpu id='1'/>", 3000)}[i == 0])
	}
	many := read("<topology><cells>" + huge.String() + "</cells></topology>")
	cells := numaCells(&many)
	require.Len(t, cells, maxNUMACells)
	require.Len(t, cells[0].CPUs, maxNUMACPUs)
}

func TestCPUModels(t *testing.T) {
	read := func(s string) (caps libvirtxml.DomainCaps) {
		t.Helper()
		require.NoError(t, caps.Unmarshal("<domainCapabilities><cpu>"+s+"</cpu></domainCapabilities>"))
		return caps
	}
	caps := read(`<mode name='host-model' supported='yes'><model>EPYC</model></mode>
		<mode name='custom' supported='yes'><model usable='yes'>qemu64</model><model usable='no'>Haswell</model><model usable='unknown'>Nehalem</model>
		<model usable='yes'>qemu64</model><model usable='yes'>two words</model><model usable='yes'></model></mode>`)
	require.Equal(t, []string{"Nehalem", "qemu64"}, cpuModels(&caps))
	none := read(`<mode name='custom' supported='no'><model usable='yes'>qemu64</model></mode>`)
	require.Empty(t, cpuModels(&none))
	require.Empty(t, cpuModels(&libvirtxml.DomainCaps{}))
	many := strings.Builder{}
	for i := range 1000 {
		fmt.Fprintf(&many, "<model usable='yes'>m%d</model>", i)
	}
	long := read("<mode name='custom' supported='yes'>" + many.String() + "</mode>")
	require.Len(t, cpuModels(&long), maxCPUModels)
}

// tree makes a file system of name and content; content that begins with "-> " is a link.
func tree(t *testing.T, files map[string]string) fs.FS {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		at := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(at), 0o755))
		if to, isLink := strings.CutPrefix(content, "-> "); isLink {
			require.NoError(t, os.Symlink(to, at))
		} else {
			require.NoError(t, os.WriteFile(at, []byte(content), 0o644))
		}
	}
	return os.DirFS(dir)
}

func TestMemoryAndFlags(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		used  int64
		huge  []api.HugePages
		flags []string
	}{
		"a server": {
			files: map[string]string{
				"proc/meminfo": "MemTotal:       1048576 kB\nMemFree:  4 kB\nMemAvailable:   524288 kB\nHugePages_Total: 0\n",
				"proc/cpuinfo": "processor\t: 0\nflags\t\t: sse2 fpu avx2 fpu\n\nprocessor\t: 1\nflags\t\t: other\n",
				"sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages":      "1024\n",
				"sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages":    "1003\n",
				"sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages":   "4\n",
				"sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages": "3\n",
				"sys/kernel/mm/hugepages/hugepages-16777216kB/nr_hugepages":  "0\n",
			},
			used:  512 * api.MiB,
			huge:  []api.HugePages{{Size: 2 * api.MiB, Total: 1024, Free: 1000}, {Size: api.GiB, Total: 4, Free: 3}},
			flags: []string{"avx2", "fpu", "sse2"},
		},
		"all pages free": {
			files: map[string]string{
				"sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": "1023", "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages": "1023",
			},
			huge: []api.HugePages{{Size: 2 * api.MiB, Total: 1023, Free: 1023}},
		},
		"ARM":    {files: map[string]string{"proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd aes\n"}, flags: []string{"aes", "asimd", "fp"}},
		"RISC-V": {files: map[string]string{"proc/cpuinfo": "isa\t\t: rv64imafdc_zicsr_zifencei\n"}, flags: []string{"rv64imafdc", "zicsr", "zifencei"}},
		"empty":  {},
		"nonsense": {
			files: map[string]string{
				"proc/meminfo": "MemTotal: lots\nMemAvailable: -5 kB\n:::\n\x00\xff\nMemTotal: 99999999999999999999 kB\nMemTotal: 4611686018427387904 kB\n",
				"proc/cpuinfo": "flags\nflags: \x1b[31mred \xff\xfe " + strings.Repeat("x", 65) + "\n",
				"sys/kernel/mm/hugepages/hugepages-kB/nr_hugepages":                    "1",
				"sys/kernel/mm/hugepages/hugepages--4kB/nr_hugepages":                  "1",
				"sys/kernel/mm/hugepages/hugepages-9223372036854775807kB/nr_hugepages": "1",
				"sys/kernel/mm/hugepages/hugepages-64kB/nr_hugepages":                  "-7",
				"sys/kernel/mm/hugepages/hugepages-32kB/nr_hugepages":                  "7",
				"sys/kernel/mm/hugepages/hugepages-32kB/free_hugepages":                "seven",
				"sys/kernel/mm/hugepages/hugepages-16kB/nr_hugepages":                  "8",
				"sys/kernel/mm/hugepages/hugepages-16kB/free_hugepages":                "9",
				"sys/kernel/mm/hugepages/hugepages-8kB":                                "a file",
			},
			huge: []api.HugePages{{Size: 16 * api.KiB, Total: 8, Free: 8}},
		},
		"more available than there is": {files: map[string]string{"proc/meminfo": "MemTotal: 1 kB\nMemAvailable: 2 kB\n"}},
		"a line without end":           {files: map[string]string{"proc/meminfo": strings.Repeat("x", maxLine+1) + "\nMemTotal: 9 kB\nMemAvailable: 1 kB\n"}},
	} {
		t.Run(name, func(t *testing.T) {
			root := tree(t, c.files)
			m := &machine{}
			require.Equal(t, c.used, m.usedMemory(root, api.GiB))
			require.Equal(t, c.huge, hugePages(root))
			require.Equal(t, c.flags, cpuFlags(root))
		})
	}
	flags := strings.Builder{}
	for i := range 5000 {
		fmt.Fprintf(&flags, " f%d", i)
	}
	require.Len(t, cpuFlags(tree(t, map[string]string{"proc/cpuinfo": "flags :" + flags.String()})), maxCPUFlags)
}

// What changes all the time is told anew only when it has changed by much, and does not go back and forth at a border.
func TestUsedMemoryIsTold(t *testing.T) {
	m := &machine{}
	used := func(mib int64) int64 {
		root := tree(t, map[string]string{"proc/meminfo": fmt.Sprintf("MemTotal: %d kB\nMemAvailable: %d kB\n", 32*api.GiB/api.KiB, (32*api.GiB-mib*api.MiB)/api.KiB)})
		return m.usedMemory(root, 32*api.GiB) / api.MiB // so a step is 64 MiB
	}
	require.EqualValues(t, 1024, used(1030))
	for _, now := range []int64{1024, 1023, 1087, 961, 1024} {
		require.EqualValues(t, 1024, used(now))
	}
	require.EqualValues(t, 1088, used(1090))
	require.EqualValues(t, 1088, used(1026))
	require.EqualValues(t, 1024, used(1024))
	require.EqualValues(t, 1024, m.usedMemory(tree(t, nil), 32*api.GiB)/api.MiB, "what cannot be read is as it was")
}

func TestHostDevices(t *testing.T) {
	const dir = "sys/bus/pci/devices/"
	files := map[string]string{}
	device := func(address, class, vendor, product, driver string) {
		files[dir+address+"/class"], files[dir+address+"/vendor"], files[dir+address+"/device"] = class, vendor, product
		if driver != "" {
			files[dir+address+"/driver"] = "-> " + driver
		}
	}
	device("0000:01:00.0", "0x030200\n", "0x10de\n", "0x2330\n", "../../../../bus/pci/drivers/vfio-pci")
	device("0000:00:02.0", "0x030000\n", "0x8086\n", "0x1912\n", "")
	device("10000:e1:1f.7", "0x120000\n", "0x1da3\n", "0x1060\n", "../habanalabs")
	device("0000:00:03.0", "0x020000\n", "0x8086\n", "0x1572\n", "../ixgbe") // a NIC
	device("0000:02:00.0", "0x030000", "0x10de; rm -rf /", strings.Repeat("0x1111", 10000), "../\x1b[31m")
	device("0000:03:00.0", "030000", "0x10de", "0x0001", "")             // no class
	device("0000:03:00.1", "0x03", "0x10de", "0x0001", "")               // half of one
	device("0000:03:00.2", "0x030000\n0x0", "0x10de", "0x0001", "")      // two
	device("0000:03:40.0", "0x030000", "0x10de", "0x0001", "")           // no address
	device("evil\nname", "0x030000", "0x10de", "0x0001", "")             // nor that
	files[dir+"0000:04:00.0"] = "a file"                                 //
	files[dir+"0000:04:00.1"] = "-> ../../../devices/gone"               // a link to nowhere
	files[dir+"0000:04:00.2"] = "-> 0000:04:00.2"                        // to itself
	files[dir+"0000:04:00.3/class/x"] = "a directory in place of a file" //
	require.Equal(t, []api.HostDevice{
		{Address: "0000:00:02.0", Class: "0x030000", Vendor: "8086", Product: "1912"},
		{Address: "0000:01:00.0", Class: "0x030200", Vendor: "10de", Product: "2330", Driver: "vfio-pci"},
		{Address: "0000:02:00.0", Class: "0x030000"},
		{Address: "10000:e1:1f.7", Class: "0x120000", Vendor: "1da3", Product: "1060", Driver: "habanalabs"},
	}, hostDevices(tree(t, files)))
	require.Empty(t, hostDevices(tree(t, nil)))
	for i := range 1000 {
		device(fmt.Sprintf("%04x:00:00.0", i+16), "0x030000", "0x10de", "0x0001", "")
	}
	require.Len(t, hostDevices(tree(t, files)), maxDevices)
}

// nic adds an interface as sysfs shows it: a link in the class to where it is.
func nic(files map[string]string, name, at string, index int, values map[string]string) {
	files["sys/class/net/"+name] = "-> ../../devices/" + at + "/net/" + name
	files["sys/devices/"+at+"/net/"+name+"/ifindex"] = fmt.Sprintf("%d\n", index)
	for k, v := range values {
		files["sys/devices/"+at+"/net/"+name+"/"+k] = v
	}
}

func TestHostNICs(t *testing.T) {
	files := map[string]string{"sys/class/net/bonding_masters": "bond0\n"}
	physical := "pci0000:00/0000:00:03.0"
	nic(files, "eno1", physical, 2, map[string]string{
		"device": "-> ../../../0000:00:03.0", "address": "3C:EC:EF:00:00:01\n", "mtu": "9000\n", "speed": "25000\n", "operstate": "up\n",
	})
	nic(files, "eno2", physical, 3, map[string]string{"device": "-> ../../../0000:00:03.0", "speed": "-1\n", "operstate": "down\n", "mtu": "1500\n"})
	files["sys/devices/"+physical+"/vendor"] = "0x8086"
	nic(files, "eno1v0", "pci0000:00/0000:00:03.1", 4, map[string]string{"device": "-> ../../../0000:00:03.1"})
	files["sys/devices/pci0000:00/0000:00:03.1/physfn"] = "-> ../0000:00:03.0"
	nic(files, "bond0", "virtual", 5, map[string]string{"bonding/mode": "802.3ad 4", "operstate": "up", "speed": "50000", "address": "3c:ec:ef:00:00:01"})
	nic(files, "lo", "virtual", 1, map[string]string{"operstate": "unknown", "carrier": "1"})
	nic(files, "br-ex", "virtual", 6, map[string]string{"operstate": "unknown\n", "carrier": "1\n", "mtu": "1500", "speed": "10"})
	nic(files, "br-int", "virtual", 7, map[string]string{"operstate": "unknown", "carrier": "1"})
	nic(files, "vnet0", "virtual", 8, map[string]string{"tun_flags": "0x1002", "operstate": "up"})
	nic(files, "veth1", "virtual", 9, map[string]string{"operstate": "up"})
	nic(files, "eth0", "virtual", 10, map[string]string{ // addressed, and full of nonsense
		"address": "00:00:00:00:00:00:00:00\n", "mtu": "99999999999999999999", "speed": "4294967295", "operstate": strings.Repeat("up", 4000), "carrier": "1",
	})
	nic(files, "evil\x1b[2J", "virtual", 11, nil)
	nic(files, "a-name-that-is-too-long", "virtual", 12, nil)
	files["sys/class/net/loop"] = "-> loop"
	files["sys/class/net/gone"] = "-> ../../devices/gone"
	own := map[int]bool{1: true, 6: true, 10: true, 11: true, 12: true, 4000: true}
	require.Equal(t, []api.HostNIC{
		{Name: "bond0", MAC: "3c:ec:ef:00:00:01", Speed: 50000, Up: true},
		{Name: "br-ex", MTU: 1500, Speed: 10, Up: true},
		{Name: "eno1", MAC: "3c:ec:ef:00:00:01", MTU: 9000, Speed: 25000, Up: true},
		{Name: "eno2", MTU: 1500},
		{Name: "eth0"},
	}, hostNICs(tree(t, files), own))
	require.Len(t, hostNICs(tree(t, files), nil), 3, "the addresses cannot be had: the physical ones and the bond are known all the same")
	require.Empty(t, hostNICs(tree(t, nil), own))
	for i := range 500 {
		nic(files, fmt.Sprintf("e%d", i), physical, 100+i, map[string]string{"device": "-> ../../../0000:00:03.0"})
	}
	require.Len(t, hostNICs(tree(t, files), own), maxNICs)
}

// The same over real files and links, with one that blocks whoever opens it.
func TestHungDriverHoldsNobodyUp(t *testing.T) {
	dir := t.TempDir()
	at := filepath.Join(dir, "sys/class/net/eth0")
	require.NoError(t, os.MkdirAll(at, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(at, "ifindex"), []byte("2"), 0o644))
	hang, asked := make(chan struct{}), make(chan struct{}, 8)
	m := &machine{root: os.DirFS(dir), own: func() map[int]bool { asked <- struct{}{}; <-hang; return map[int]bool{2: true} }}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 3 {
		var inv api.Inventory
		m.fill(ctx, &inv)
		require.Empty(t, inv.NICs)
	}
	close(hang)
	require.Eventually(t, func() bool {
		var inv api.Inventory
		m.fill(t.Context(), &inv)
		return len(inv.NICs) == 1 && inv.NICs[0].Name == "eth0"
	}, 10*time.Second, time.Millisecond)
	require.Len(t, asked, 1, "nobody asks again while it hangs, nor right afterwards")
}

// TestInventoryOfThisNode asks a real libvirt, and the kernel under this test.
func TestInventoryOfThisNode(t *testing.T) {
	uri := os.Getenv("NEXTSTACK_TEST_LIBVIRT")
	if uri == "" {
		t.Skip("SKIPPED, NOT TESTED: the inventory of a real node. Set NEXTSTACK_TEST_LIBVIRT to a libvirt URI with QEMU")
	}
	peer := api.Peer{Libvirt: "qemu+tcp://10.0.0.1/system", Address: "10.0.0.1", Transfer: "10.0.0.1:7"}
	d := New(Options{URI: uri, Accel: os.Getenv("NEXTSTACK_TEST_ACCEL"), Peer: peer})
	defer d.Close()
	inv, err := d.Inventory(t.Context())
	require.NoError(t, err)
	require.True(t, api.IsUUID(inv.HostUUID), inv.HostUUID)
	require.Equal(t, peer, inv.Peer)
	require.NotEmpty(t, inv.CPUModels)
	require.IsIncreasing(t, inv.CPUModels)
	if inv.Accel == "tcg" && inv.CPUModel != "" {
		require.Contains(t, inv.CPUModels, inv.CPUModel)
	}
	require.NotEmpty(t, inv.CPUFlags)
	require.IsIncreasing(t, inv.CPUFlags)
	cpus := 0
	for _, c := range inv.NUMA {
		cpus += len(c.CPUs)
	}
	require.GreaterOrEqual(t, cpus, inv.Cores)
	require.Positive(t, inv.UsedMemory)
	require.Zero(t, inv.UsedMemory%grain)
	for _, n := range inv.NICs {
		require.NotEqual(t, "lo", n.Name)
	}
	again, err := d.Inventory(t.Context())
	require.NoError(t, err)
	again.UsedMemory, again.HugePages = inv.UsedMemory, inv.HugePages // the one thing that may have changed
	require.Equal(t, inv, again)
	b, err := json.Marshal(inv)
	require.NoError(t, err)
	t.Logf("%d bytes: %s", len(b), b)
}

func BenchmarkInventoryWithoutLibvirt(b *testing.B) {
	m := &machine{}
	for b.Loop() {
		var inv api.Inventory
		m.fill(b.Context(), &inv)
	}
}
