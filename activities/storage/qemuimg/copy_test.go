package qemuimg

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/storage/qcow2"
	"github.com/nextstack/nextstack/api"
)

// TestCopiesAtARate: a copy takes no less time than its rate allows.
func TestCopiesAtARate(t *testing.T) {
	const size, rate = 12 * api.MiB, 4 * api.MiB
	from, to := filepath.Join(t.TempDir(), "from"), filepath.Join(t.TempDir(), "to")
	data := make([]byte, size)
	_, err := rand.Read(data)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(from, data, 0o600))
	require.NoError(t, qcow2.Create(to, size, ""))
	source := File(from, api.FormatRaw, size)
	source.Rate = rate
	began := time.Now()
	require.NoError(t, Copy(t.Context(), source, File(to, api.FormatQCOW2, size), nil))
	require.Greater(t, time.Since(began), time.Duration(size/rate-1)*time.Second, "the first second's worth may go at once")
	back := filepath.Join(t.TempDir(), "back")
	require.NoError(t, os.WriteFile(back, nil, 0o600))
	require.NoError(t, os.Truncate(back, size))
	require.NoError(t, Copy(t.Context(), File(to, api.FormatQCOW2, size), File(back, api.FormatRaw, size), nil))
	came, err := os.ReadFile(back)
	require.NoError(t, err)
	require.Equal(t, data, came)
}
