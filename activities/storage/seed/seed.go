// Package seed makes the disk from which cloud-init (or anything that knows its NoCloud source) learns what a VM shall be.
package seed

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"

	"github.com/nextstack/nextstack/api"
)

// Label is the volume label by which guests find the disk.
const Label = "cidata"

// Write makes the disk at path. Work is a directory that does not exist; the files lie there meanwhile, because they are
// secret and /tmp is not. Macs are the guest's interfaces in their order.
func Write(path, work string, s api.Seed, macs []string) (err error) {
	if err := os.Mkdir(work, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	fs, err := iso9660.Create(file.New(f, false), 0, 0, 0, work)
	if err != nil {
		return err
	}
	for name, text := range Files(s, macs) {
		if err := os.WriteFile(work+"/"+name, []byte(text), 0o600); err != nil {
			return err
		}
	}
	if err := fs.Finalize(iso9660.FinalizeOptions{RockRidge: true, VolumeIdentifier: fmt.Sprintf("%-32s", Label)}); err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := f.Truncate(info.Size() + padding); err != nil {
		return err
	}
	return f.Sync()
}

// padding follows the file system, as it does on disks that other programs make: guests look for the beginnings of other
// file systems first, and some take a disk that ends before those for a broken one.
const padding = 150 * 2048

// Files returns the files of the disk by name.
func Files(s api.Seed, macs []string) map[string]string {
	files := map[string]string{"meta-data": metaData(s), "user-data": userData(s)}
	if len(macs) > 1 { // with one, cloud-init does the right thing unasked
		files["network-config"] = networkConfig(macs)
	}
	return files
}

func metaData(s api.Seed) string {
	var b strings.Builder
	fmt.Fprintf(&b, "instance-id: %s\nlocal-hostname: %s\n", scalar(s.InstanceID), scalar(s.Hostname))
	list(&b, "public-keys", s.SSHKeys)
	return b.String()
}

// userData is the user's own text if there is one; the keys are in the meta-data in any case.
func userData(s api.Seed) string {
	if s.UserData != "" {
		return s.UserData
	}
	var b strings.Builder
	b.WriteString("#cloud-config\n")
	list(&b, "ssh_authorized_keys", s.SSHKeys)
	return b.String()
}

func list(b *strings.Builder, key string, values []string) {
	if len(values) == 0 {
		return
	}
	b.WriteString(key + ":\n")
	for _, v := range values {
		b.WriteString("  - " + scalar(strings.TrimSpace(v)) + "\n")
	}
}

// networkConfig gives every interface its address by DHCP; the first one has the default route.
func networkConfig(macs []string) string {
	var b strings.Builder
	b.WriteString("version: 2\nethernets:\n")
	for i, m := range macs {
		fmt.Fprintf(&b, "  nic%d:\n    match: {macaddress: %s}\n    dhcp4: true\n    dhcp4-overrides: {route-metric: %d}\n", i, quoted(m), 100*(i+1))
	}
	return b.String()
}

// scalar writes s as a YAML string: as it is where that can mean nothing else, for the sake of readers simpler than YAML.
func scalar(s string) string {
	if key.MatchString(s) || hostname.MatchString(s) && !keyword[s] {
		return s
	}
	return quoted(s)
}

var (
	key      = regexp.MustCompile(`^(ssh|ecdsa|sk)-[A-Za-z0-9+/=@._ -]*[A-Za-z0-9=]$`)
	hostname = regexp.MustCompile(`^[a-z][a-z0-9-]*$`)
	keyword  = map[string]bool{"true": true, "false": true, "yes": true, "no": true, "on": true, "off": true, "null": true, "y": true, "n": true}
)

// quoted writes s as a JSON string, which YAML can read.
func quoted(s string) string {
	b, _ := json.Marshal(s) // a string always can be
	return string(b)
}
