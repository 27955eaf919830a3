// Package docs_test keeps the documentation true to the tree: links lead somewhere, files that are named exist, and the
// table of errors is the one in the code.
package docs_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode"

	"github.com/stretchr/testify/require"
)

// root is the repository, seen from this package.
const root = ".."

var (
	linkRE    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	headingRE = regexp.MustCompile(`(?m)^#{1,6}\s+(.+?)\s*$`)
	fenceRE   = regexp.MustCompile("(?ms)^```.*?^```$")
	pathRE    = regexp.MustCompile("`((?:api|workflows|activities|workers|cli|deploy|docs|test|web)/[A-Za-z0-9_./-]*[A-Za-z0-9_/])`")
)

// pages returns every Markdown file of the repository, without what is built or fetched.
func pages(t *testing.T) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() && path != root && (strings.HasPrefix(name, ".") || name == "bin" || name == "node_modules") {
			return filepath.SkipDir
		}
		if !d.IsDir() && filepath.Ext(name) == ".md" {
			out = append(out, path)
		}
		return nil
	})
	require.NoError(t, err)
	require.Greater(t, len(out), 10, "the pages were not found")
	return out
}

func TestRelativeLinksLeadSomewhere(t *testing.T) {
	checked := 0
	for _, page := range pages(t) {
		text := read(t, page)
		for _, m := range linkRE.FindAllStringSubmatch(fenceRE.ReplaceAllString(text, ""), -1) {
			target := m[1]
			if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			checked++
			file, anchor, _ := strings.Cut(target, "#")
			path := page
			if file != "" {
				path = filepath.Join(filepath.Dir(page), file)
			}
			if _, err := os.Stat(path); err != nil {
				t.Errorf("%s: the link %s leads nowhere", page, target)
				continue
			}
			if anchor != "" && filepath.Ext(path) == ".md" && !anchors(read(t, path))[anchor] {
				t.Errorf("%s: the link %s names a heading that is not there", page, target)
			}
		}
	}
	require.Positive(t, checked, "no link was found")
}

// planned are paths that a page names before the thing is there; docs/adding-an-operation.md makes none of them. Each page
// says so where it names one. An entry whose path exists is an error, so that this list can only shrink.
var planned = map[string]bool{}

func TestFilesThatPagesNameExist(t *testing.T) {
	checked := 0
	for _, page := range pages(t) {
		for _, m := range pathRE.FindAllStringSubmatch(read(t, page), -1) {
			checked++
			path := m[1]
			_, err := os.Stat(filepath.Join(root, path))
			switch {
			case err != nil && !planned[path]:
				t.Errorf("%s names %s, which does not exist", page, path)
			case err == nil && planned[path]:
				t.Errorf("%s exists now: take it off the list of planned paths, and read what %s says of it", path, page)
			}
		}
	}
	require.Positive(t, checked, "no path was found")
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(b)
}

// anchors returns the names by which the headings of a page can be linked to, as GitHub makes them.
func anchors(text string) map[string]bool {
	out := map[string]bool{}
	for _, m := range headingRE.FindAllStringSubmatch(fenceRE.ReplaceAllString(text, ""), -1) {
		var b strings.Builder
		for _, r := range strings.ToLower(m[1]) {
			switch {
			case r == ' ' || r == '-':
				b.WriteByte('-')
			case r == '_' || unicode.IsLetter(r) || unicode.IsNumber(r):
				b.WriteRune(r)
			}
		}
		name := b.String()
		for i := 1; out[name]; i++ {
			name = fmt.Sprintf("%s-%d", b.String(), i)
		}
		out[name] = true
	}
	return out
}
