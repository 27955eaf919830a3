//go:build linux

package trim

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestCodeGivesBackAndGoesOn: less of the program is mapped afterwards, and it still works.
func TestCodeGivesBackAndGoesOn(t *testing.T) {
	before := mapped(t)
	require.NoError(t, Code())
	require.Less(t, mapped(t), before)
	require.Equal(t, "ok", strings.ToLower("OK"))
}

func mapped(t *testing.T) string {
	b, err := os.ReadFile("/proc/self/smaps_rollup")
	require.NoError(t, err)
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "Pss_File:"); ok {
			return v // right-aligned numbers of one width compare as text
		}
	}
	t.Skip("this kernel does not tell Pss_File")
	return ""
}
