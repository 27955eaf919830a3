package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api/problem"
)

func load(t *testing.T, args ...string) (config, error) {
	f := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	flags(f)
	require.NoError(t, f.Parse(args))
	return loadConfig(f)
}

func yamlFile(t *testing.T, text string) string {
	path := filepath.Join(t.TempDir(), "nextstack.yml")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func TestFlagsWinOverTheEnvironmentAndThatOverTheFile(t *testing.T) {
	path := yamlFile(t, "data-dir: /from/file\nnamespace: from-file\nlog-level: warn\netcd-endpoints: [a:1, b:2]\n")
	t.Setenv("NEXTSTACK_NAMESPACE", "from-env")
	t.Setenv("NEXTSTACK_LOG_LEVEL", "debug")
	t.Setenv("NEXTSTACK_IMAGE_DIR", "/x,/y")
	t.Setenv("NEXTSTACK_PLACEMENT", "pack")
	c, err := load(t, "-C", path, "--log-level", "error")
	require.NoError(t, err)
	require.Equal(t, "/from/file", c.DataDir)
	require.Equal(t, "from-env", c.Namespace)
	require.Equal(t, "error", c.LogLevel)
	require.Equal(t, []string{"a:1", "b:2"}, c.EtcdEndpoints)
	require.Equal(t, []string{"/x", "/y"}, c.ImageDirs)
	require.Equal(t, "pack", c.Placement)
	require.Equal(t, []string{"127.0.0.1:8899"}, c.Listen, "nobody said, so the default")
	require.Equal(t, "/from/file/join-token", c.JoinTokenFile)
}

func TestWrongConfigurationIsExplained(t *testing.T) {
	for name, args := range map[string][]string{
		"unknown key":  {"-C", yamlFile(t, "data_dir: /x\n")},
		"not yaml":     {"-C", yamlFile(t, "{")},
		"no such file": {"-C", "/nosuch.yml"},
		"log level":    {"--log-level", "loud"},
		"ovn":          {"--ovn-nb", "10.0.0.1:6641"},
		"ratio":        {"--cpu-ratio", "0"},
		"placement":    {"--placement", "stack"},
	} {
		_, err := load(t, args...)
		require.Equal(t, problem.Invalid, problem.KindOf(err), name)
	}
}

func TestTheJoinTokenIsMadeOnceAndKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "join-token")
	first, err := joinToken(path)
	require.NoError(t, err)
	require.Len(t, first, 32)
	again, err := joinToken(path)
	require.NoError(t, err)
	require.Equal(t, first, again)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	require.NoError(t, os.WriteFile(path, []byte("short"), 0o600))
	_, err = joinToken(path)
	require.Equal(t, problem.Invalid, problem.KindOf(err))
}

func TestAnAddressInUseIsExplained(t *testing.T) {
	l, err := listen([]string{"127.0.0.1:0"})
	require.NoError(t, err)
	defer l[0].Close()
	_, err = listen([]string{l[0].Addr().String()})
	require.Equal(t, problem.Conflict, problem.KindOf(err))
	require.Contains(t, err.Error(), "--listen")
}
