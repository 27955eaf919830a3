package docs_test

import (
	"bytes"
	"context"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/cli/command"
)

var (
	plainFenceRE = regexp.MustCompile("(?ms)^```\n(.*?)^```$")
	codeSpanRE   = regexp.MustCompile("`((?:bin/)?gnext [^`]+)`")
	wordRE       = regexp.MustCompile(`"([^"]*)"|(\S+)`)
)

// example is the command that docs/adding-an-operation.md makes up.
const example = "vm suspend"

// TestCommandsOfThePagesExist runs every gnext command that a page shows, with --help at its end: so commands and flags
// must exist, and nothing is done.
func TestCommandsOfThePagesExist(t *testing.T) {
	checked := 0
	for _, page := range pages(t) {
		for _, line := range commands(read(t, page)) {
			if strings.HasPrefix(line, example) {
				continue
			}
			checked++
			if problem := check(line); problem != "" {
				t.Errorf("%s: gnext %s: %s", page, line, problem)
			}
		}
	}
	require.Greater(t, checked, 20, "the commands were not found")
}

// TestWrongCommandsAreNoticed makes sure that the test above can fail.
func TestWrongCommandsAreNoticed(t *testing.T) {
	for _, line := range []string{"vm fly web1", "fly", "vm list --altitude 3", "audit --pretend"} {
		require.NotEmpty(t, check(line), line)
	}
	require.Empty(t, check(`sg add web --rule "ingress tcp 80 0.0.0.0/0"`))
}

// commands returns the gnext commands of a page without the word gnext.
func commands(text string) []string {
	var out []string
	add := func(s string) {
		if line, ok := strings.CutPrefix(strings.TrimPrefix(strings.TrimSpace(s), "bin/"), "gnext "); ok {
			line, _, _ = strings.Cut(line, " #")
			line, _, _ = strings.Cut(line, "|")
			out = append(out, strings.TrimSpace(line))
		}
	}
	for _, block := range plainFenceRE.FindAllStringSubmatch(text, -1) {
		for _, line := range strings.Split(block[1], "\n") {
			add(line)
		}
	}
	for _, m := range codeSpanRE.FindAllStringSubmatch(fenceRE.ReplaceAllString(text, ""), -1) {
		add(m[1])
	}
	return out
}

// check returns what is wrong with a command, or "".
func check(line string) string {
	var args []string
	for _, m := range wordRE.FindAllStringSubmatch(line, -1) {
		args = append(args, m[1]+m[2])
	}
	help, problem := run(args...)
	if problem != "" {
		return problem
	}
	// An unknown word after a command that holds others shows the help of those.
	_, usage, _ := strings.Cut(help, "Usage:\n")
	usage, _, _ = strings.Cut(usage, "\n\n")
	if len(args) > 1 && strings.Contains(usage, "[command]") || !strings.Contains(usage, "gnext "+args[0]) {
		return "there is no such command"
	}
	return ""
}

func run(args ...string) (stdout, problem string) {
	var out, errs bytes.Buffer
	code := command.Run(context.Background(), command.Env{
		Args: append(args, "--help"), Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs, Getenv: func(string) string { return "" }, Version: "test",
	})
	if code != 0 {
		return "", strings.TrimSpace(errs.String())
	}
	return out.String(), ""
}
