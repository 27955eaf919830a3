package store_test

import (
	"bytes"
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

func openVault(t testing.TB, path string) *store.Vault {
	t.Helper()
	v, err := store.OpenVault(path)
	require.NoError(t, err)
	return v
}

func seal(t testing.TB, v *store.Vault, plain, aad string) []byte {
	t.Helper()
	sealed, err := v.Seal(plain, aad)
	require.NoError(t, err)
	return sealed
}

// keyLine returns a line of a key file.
func keyLine(b byte) string {
	return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{b}, 32)) + "\n"
}

func keyFile(t testing.TB, text string) string {
	path := filepath.Join(t.TempDir(), "key")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func TestVaultRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	v := openVault(t, path)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode())
	again := openVault(t, path)
	for _, plain := range []string{"", "x", strings.Repeat("secret ", 9000)} {
		sealed := seal(t, v, plain, "vm-1")
		require.NotEqual(t, sealed, seal(t, v, plain, "vm-1"), "never the same twice")
		if len(plain) > 8 { // a shorter text can be in there by chance
			require.NotContains(t, string(sealed), plain[:8])
		}
		got, err := again.Open(sealed, "vm-1")
		require.NoError(t, err)
		require.Equal(t, plain, got)
	}
	_, err = v.Seal(strings.Repeat("x", store.MaxBytes), "vm-1")
	require.True(t, problem.Is(err, problem.TooLarge), "%v", err)
	left, err := os.ReadDir(filepath.Dir(path))
	require.NoError(t, err)
	require.Len(t, left, 1, "no temporary file stays")
}

func TestVaultNoticesEveryChange(t *testing.T) {
	v := openVault(t, keyFile(t, keyLine(1)))
	sealed := seal(t, v, "secret", "vm-1")
	for i := range sealed {
		for _, bit := range []byte{1, 0x80} {
			bad := bytes.Clone(sealed)
			bad[i] ^= bit
			_, err := v.Open(bad, "vm-1")
			require.True(t, problem.Is(err, problem.Internal), "byte %d: %v", i, err)
		}
		_, err := v.Open(sealed[:i], "vm-1")
		require.True(t, problem.Is(err, problem.Internal), "cut at %d: %v", i, err)
	}
	_, err := v.Open(append(bytes.Clone(sealed), 0), "vm-1")
	require.Error(t, err)
	_, err = v.Open(sealed, "vm-2")
	require.ErrorContains(t, err, "belongs elsewhere")
}

func TestVaultWrongKeyAndRotation(t *testing.T) {
	old, fresh := keyFile(t, keyLine(1)), keyFile(t, keyLine(2))
	sealed := seal(t, openVault(t, old), "secret", "vm-1")
	_, err := openVault(t, fresh).Open(sealed, "vm-1")
	require.True(t, problem.Is(err, problem.Internal), "%v", err)
	require.ErrorContains(t, err, "is not in "+fresh)

	both := openVault(t, keyFile(t, "# new\n"+keyLine(2)+"\n# old\n"+keyLine(1)))
	plain, err := both.Open(sealed, "vm-1")
	require.NoError(t, err)
	require.Equal(t, "secret", plain)
	plain, err = openVault(t, fresh).Open(seal(t, both, "secret", "vm-1"), "vm-1")
	require.NoError(t, err, "the first key seals")
	require.Equal(t, "secret", plain)
}

func TestVaultRefusesBadFiles(t *testing.T) {
	for _, mode := range []os.FileMode{0o640, 0o604, 0o620, 0o610, 0o666} {
		path := keyFile(t, keyLine(1))
		require.NoError(t, os.Chmod(path, mode))
		_, err := store.OpenVault(path)
		require.ErrorContains(t, err, "chmod 600 "+path)
	}
	secret := strings.Repeat("A", 42)
	for name, text := range map[string]string{
		"empty":      "",
		"comments":   "# nothing\n",
		"no base64":  "not a key!\n",
		"too short":  secret + "==\n",
		"too large":  strings.Repeat(keyLine(1), 2000),
		"second bad": keyLine(1) + "oops\n",
	} {
		_, err := store.OpenVault(keyFile(t, text))
		require.True(t, problem.Is(err, problem.Internal), "%s: %v", name, err)
		require.NotEmpty(t, problem.From(err).Fix, name)
		require.NotContains(t, err.Error(), secret, "keys stay out of messages")
	}
	_, err := store.OpenVault(t.TempDir())
	require.ErrorContains(t, err, "not a file")
	_, err = store.OpenVault(filepath.Join(t.TempDir(), "none", "key"))
	require.ErrorContains(t, err, "check the directory")
}

func TestVaultIsMadeOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	sealed := make([][]byte, 20)
	parallel(len(sealed), func(i int) {
		v, err := store.OpenVault(path)
		if err != nil {
			t.Error(err)
			return
		}
		sealed[i], _ = v.Seal("secret", "x")
	})
	v := openVault(t, path)
	for _, s := range sealed {
		_, err := v.Open(s, "x")
		require.NoError(t, err)
	}
}

func FuzzVaultOpen(f *testing.F) {
	v := openVault(f, keyFile(f, keyLine(1)))
	sealed := seal(f, v, "secret", "vm-1")
	f.Add(sealed, "vm-1")
	f.Add(sealed, "vm-2")
	f.Add(sealed[:5], "vm-1")
	f.Add([]byte{}, "")
	f.Add([]byte{2, 0, 0, 0, 0}, "")
	f.Fuzz(func(t *testing.T, data []byte, aad string) {
		plain, err := v.Open(data, aad)
		if err == nil { // nobody can make another one without the key
			require.Equal(t, "vm-1", aad)
			require.Equal(t, "secret", plain)
			return
		}
		require.True(t, problem.Is(err, problem.Internal), "%v", err)
		require.Empty(t, plain)
	})
}
