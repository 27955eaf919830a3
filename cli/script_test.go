// Package cli_test runs gnext, as people do, against the real API. The scripts in testdata say what is typed and what must
// come back; `go test ./cli -update` writes what comes back into them.
package cli_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/nextstack/nextstack/cli/command"
)

var update = flag.Bool("update", false, "write what comes out into the scripts")

// oneAgent is the agent of the tests: it says what it was given and waits until it is told to stop.
func oneAgent(ctx context.Context, c command.AgentConfig) error {
	fmt.Fprintf(os.Stderr, "agent %s server=%s token=%s%s libvirt=%s ovs=%s level=%s\n", c.Name, c.Server, c.JoinToken, filepath.Base(c.JoinTokenFile), c.Libvirt, c.OVS, c.LogLevel)
	if c.Name == "broken" {
		return fmt.Errorf("libvirt is not there")
	}
	<-ctx.Done()
	fmt.Fprintln(os.Stderr, "agent ended")
	return nil
}

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"gnext":       func() { os.Exit(command.Main("1.0.0", nil, nil)) },
		"gnext-agent": func() { os.Exit(command.Main("1.0.0", oneAgent, nil)) },
	})
}

type cloudKey struct{}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			c, err := newCloud(filepath.Join(e.WorkDir, ".cloud"), e.Defer)
			if err != nil {
				return err
			}
			e.Values[cloudKey{}] = c
			for k, v := range c.env() {
				e.Setenv(k, v)
			}
			e.Setenv("PASSWORD", c.password)
			e.Setenv("AGENT_ID", c.joined.ID)
			e.Setenv("HOME", filepath.Join(e.WorkDir, "home"))
			e.Setenv("GORACE", os.Getenv("GORACE")) // a program with race detection sleeps for a second before it exits, unless told otherwise
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"scrub": scrub, "world": world, "report": report, "exits": exits, "capture": capture, "await-file": awaitFile,
		},
	})
}

// What differs from run to run.
var scrubs = []struct {
	re   *regexp.Regexp
	with string
}{
	{regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`), "UUID"},
	{regexp.MustCompile(`\b[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9:.]+ ?(Z|UTC)`), "TIME"},
	{regexp.MustCompile(`([0-9a-f]{2}:){5}[0-9a-f]{2}`), "MAC"},
	{regexp.MustCompile(`-[0-9a-f]{8}\b`), "-HEX"},
	{regexp.MustCompile(`127\.0\.0\.1:[0-9]+`), "ADDRESS"},
	{regexp.MustCompile(`\b[0-9]+(\.[0-9]+)?s\b`), "AGE"},
	{regexp.MustCompile(`,[0-9]+\.[0-9]{3}\n`), ",SECONDS\n"},
	{regexp.MustCompile(`((?i:revision)"?:? +)[0-9]+`), "${1}N"},
	{regexp.MustCompile(`  +`), "  "},
}

// fleeting matches what is only seen by those who look in time.
var fleeting = regexp.MustCompile(`^ +\[[0-9]/[0-9]\] \S+: (running|undoing)`)

// scrub [stdout|stderr] FILE writes the output of the last command to FILE, without what differs from run to run.
func scrub(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: scrub stdout|stderr FILE")
	}
	text := ts.ReadFile(args[0])
	text = strings.ReplaceAll(text, ts.Getenv("WORK"), "$WORK")
	// Leading blanks of documents mean something; those inside of a line are columns.
	var b bytes.Buffer
	for line := range strings.Lines(text) {
		if fleeting.MatchString(line) {
			continue
		}
		body := strings.TrimLeft(line, " ")
		b.WriteString(line[:len(line)-len(body)])
		for _, s := range scrubs {
			body = s.re.ReplaceAllString(body, s.with)
		}
		b.WriteString(body)
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), b.Bytes(), 0o600))
}

// world clean|dirty|dark says what audits find.
func world(ts *testscript.TestScript, _ bool, args []string) {
	ts.Value(cloudKey{}).(*cloud).hands.world(args[0])
}

// report lets the node report again, with its pools.
func report(ts *testscript.TestScript, _ bool, _ []string) {
	ts.Check(ts.Value(cloudKey{}).(*cloud).report(context.Background()))
}

// exits CODE COMMAND... runs a command that must exit with CODE.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND...")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	if err != nil {
		var status *exec.ExitError
		if !errors.As(err, &status) {
			ts.Fatalf("%v", err)
		}
		code = status.ExitCode()
	}
	if fmt.Sprint(code) != args[0] {
		ts.Fatalf("%s exited with %d, not %s", strings.Join(args[1:], " "), code, args[0])
	}
}

// capture NAME [PATTERN] keeps the first word of the last command's stdout, or the first match of a pattern, in an
// environment variable.
func capture(ts *testscript.TestScript, _ bool, args []string) {
	pattern := `\S+`
	if len(args) == 2 {
		pattern = args[1]
	}
	found := regexp.MustCompile(pattern).FindString(ts.ReadFile("stdout"))
	if found == "" {
		ts.Fatalf("%s is not in the output", pattern)
	}
	ts.Setenv(args[0], found)
}

// await-file FILE waits until FILE is there and has content.
func awaitFile(ts *testscript.TestScript, _ bool, args []string) {
	deadline := time.Now().Add(20 * time.Second)
	for {
		if info, err := os.Stat(ts.MkAbs(args[0])); err == nil && info.Size() > 0 {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s does not come", args[0])
		}
		<-time.After(10 * time.Millisecond)
	}
}
