package libvirt

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestOpened(t *testing.T) {
	nodes := []blockNode{
		{Name: "libvirt-2-format", Driver: "qcow2", File: "/p/a"},
		{Name: "libvirt-2-storage", Driver: "file", File: "/p/a"},
		{Name: "libvirt-5-format", Driver: "qcow2", File: `json:{"driver":"qcow2","backing":null}`},
		{Name: "libvirt-5-storage", Driver: "file", File: "/p/b"},
		{Name: "libvirt-7-storage", Driver: "file", File: "/p/b"},
		{Name: "other", Driver: "file", File: "/p/c"},
	}
	require.Equal(t, []string{"libvirt-5-format", "libvirt-5-storage", "libvirt-7-storage"}, opened(nodes, "/p/b"))
	require.Equal(t, []string{"other"}, opened(nodes, "/p/c"))
	require.Empty(t, opened(nodes, "/p/d"))
}
