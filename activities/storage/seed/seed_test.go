package seed

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/nextstack/nextstack/api"
)

func TestDiskHoldsTheFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "seed.iso")
	s := api.Seed{InstanceID: "3c7e1d4a-0000-4000-8000-000000000001", Hostname: "web", SSHKeys: []string{"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 me@host"}, UserData: "#!/bin/sh\necho hello\n"}
	require.NoError(t, Write(path, filepath.Join(dir, "work"), s, []string{"52:54:00:00:00:01", "52:54:00:00:00:02"}))
	require.NoDirExists(t, filepath.Join(dir, "work"))
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	require.Zero(t, info.Size()%512, "virtio disks have whole sectors")

	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	fs, err := iso9660.Read(file.New(f, true), info.Size(), 0, 2048)
	require.NoError(t, err)
	require.Equal(t, Label, strings.TrimRight(fs.Label(), " "))
	for name, want := range Files(s, []string{"52:54:00:00:00:01", "52:54:00:00:00:02"}) {
		r, err := fs.OpenFile("/"+name, os.O_RDONLY)
		require.NoError(t, err, name)
		got, err := io.ReadAll(r)
		require.NoError(t, err)
		require.Equal(t, want, string(got))
	}
	require.Error(t, Write(path, filepath.Join(dir, "work"), s, nil), "an existing file is never written over")
}

func TestTextSurvivesYAML(t *testing.T) {
	for _, s := range []string{"web", "yes", "123", "1e3", "0x10", "a-b", "ssh-ed25519 AAAA me@host", "ssh-rsa AAAA= it's: #1", "2001-01-01", "- x", "a: b", "a #b", "", "\"", "12-3 ", "null"} {
		var got struct {
			InstanceID string   `yaml:"instance-id"`
			Hostname   any      `yaml:"local-hostname"`
			Keys       []string `yaml:"public-keys"`
		}
		require.NoError(t, yaml.Unmarshal([]byte(metaData(api.Seed{InstanceID: s, Hostname: s, SSHKeys: []string{"x" + s}})), &got), "%q", s)
		require.Equal(t, s, got.InstanceID)
		require.Equal(t, s, got.Hostname, "%q must stay text", s)
	}
}

func TestKeysReachTheGuestWithoutUserData(t *testing.T) {
	f := Files(api.Seed{InstanceID: "i", Hostname: "h", SSHKeys: []string{"ssh-ed25519 AAAA me@host"}}, nil)
	require.Equal(t, "#cloud-config\nssh_authorized_keys:\n  - ssh-ed25519 AAAA me@host\n", f["user-data"])
	require.NotContains(t, f, "network-config")
}
