// Package house holds the rules of the house against its code. They are few, each has a reason, and each says what to do
// instead of breaking it.
package house

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/nextstack/nextstack/"

// rooms are the rooms of the house: imports only point to the left.
var rooms = []string{"api", "workflows", "activities", "workers", "cli"}

// system is an outside system, and the only folders that speak to it.
type system struct {
	imports []string // import paths, or beginnings of them that end in a slash
	homes   []string
	instead string
}

var systems = []system{
	{
		[]string{"libvirt.org/go/"},
		[]string{"activities/compute"},
		"give compute.Driver a method for what you need, and the fake one too",
	},
	{
		[]string{"github.com/ovn-kubernetes/libovsdb/"},
		[]string{"activities/network"},
		"give network.Driver a method for what you need, and the fake one too",
	},
	{
		[]string{"github.com/ceph/go-ceph/"},
		[]string{"activities/storage"},
		"give storage.Pool a method for what you need, and the fake one too: only builds with the tag ceph have librados",
	},
	{
		[]string{"github.com/bougou/go-ipmi"},
		[]string{"activities/fence"},
		"give fence.Driver a method for what you need, and the fake one too",
	},
	{
		[]string{"go.etcd.io/etcd/"},
		[]string{"api/store", "workers/engine"},
		"use store.KV; what etcd can do and Memory cannot is of no use to the others",
	},
	{
		[]string{"go.temporal.io/server/", "github.com/temporalio/ui-server/"},
		[]string{"workers/engine"},
		"use the client that engine.Engine gives you: the server may be somewhere else",
	},
	{
		[]string{"github.com/danielgtaylor/huma/", "github.com/go-chi/chi/"},
		[]string{"api/server"},
		"return a *problem.Problem and plain values; api/server turns them into HTTP",
	},
	{
		[]string{"github.com/spf13/cobra", "github.com/spf13/pflag"},
		[]string{"cli"},
		"take options as a struct; cli fills it from flags",
	},
}

// caller is a function that only some folders may call.
type caller struct {
	pkg, name string
	allowed   func(dir string) bool
	instead   string
}

var callers = []caller{
	{
		module + "api/auth", "ControlPlane",
		func(dir string) bool { return !within(dir, "api/server") },
		"a request acts for the one who sent it: pass on the handle that came with it",
	},
	{
		module + "api/auth", "Authenticated",
		func(dir string) bool { return within(dir, "api/accounts") },
		"only api/accounts finds out who somebody is: ask it for a handle",
	},
}

// Workflows must do the same whenever they are replayed, so they may not see the clock, chance or the world.
var (
	worldly = map[string]string{
		"net/http":     "ask for a step and implement it in activities",
		"net":          "ask for a step and implement it in activities",
		"os":           "ask for a step and implement it in activities",
		"os/exec":      "ask for a step and implement it in activities",
		"math/rand":    "make IDs when the request is accepted, or in a step",
		"math/rand/v2": "make IDs when the request is accepted, or in a step",
		"crypto/rand":  "make IDs when the request is accepted, or in a step",
		"sync":         "a workflow is one thread; use workflow.Channel and workflow.Selector",
		"log":          "use workflow.GetLogger, which is silent in replays",
		"log/slog":     "use workflow.GetLogger, which is silent in replays",
	}
	clock  = []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "NewTimer", "NewTicker", "Tick"}
	chance = []string{module + "api.NewID", "github.com/google/uuid.New", "github.com/google/uuid.NewString", "github.com/google/uuid.NewRandom"}
)

func within(dir, folder string) bool { return dir == folder || strings.HasPrefix(dir, folder+"/") }

func matches(path, pattern string) bool {
	if strings.HasSuffix(pattern, "/") {
		return strings.HasPrefix(path+"/", pattern)
	}
	return path == pattern || strings.HasPrefix(path, pattern+"/")
}

// file is one source file of the house.
type file struct {
	dir     string // from the root, with slashes
	path    string
	set     *token.FileSet
	syntax  *ast.File
	imports map[string]string // path by the name that it has in the file
	broken  []string
}

func parse(path string, src any) (*file, error) {
	f := &file{path: path, dir: filepath.ToSlash(filepath.Dir(path)), set: token.NewFileSet(), imports: map[string]string{}}
	var err error
	f.syntax, err = parser.ParseFile(f.set, path, src, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	for _, i := range f.syntax.Imports {
		p, err := strconv.Unquote(i.Path.Value)
		if err != nil {
			return nil, err
		}
		name := p[strings.LastIndex(p, "/")+1:]
		if i.Name != nil {
			name = i.Name.Name
		}
		f.imports[name] = p
	}
	return f, nil
}

func (f *file) breaks(at token.Pos, format string, args ...any) {
	f.broken = append(f.broken, fmt.Sprintf("%s:%d: ", f.path, f.set.Position(at).Line)+fmt.Sprintf(format, args...))
}

// check returns every rule that the file breaks.
func (f *file) check() []string {
	room := slices.Index(rooms, strings.Split(f.dir, "/")[0])
	for _, spec := range f.syntax.Imports {
		p, _ := strconv.Unquote(spec.Path.Value)
		if inner, ok := strings.CutPrefix(p, module); ok {
			switch other := slices.Index(rooms, strings.Split(inner, "/")[0]); {
			case other > room:
				f.breaks(spec.Pos(), "%s imports %s, and imports only point %s: let %s define the interface or step that it needs, and %s implement it",
					rooms[room], inner, strings.Join(rooms, " <- "), rooms[room], rooms[other])
			case other < 0:
				f.breaks(spec.Pos(), "%s is not part of a room: code of the house does not stand on tests and tools; move what is needed into a room", inner)
			}
		}
		for _, s := range systems {
			for _, pattern := range s.imports {
				if matches(p, pattern) && !slices.ContainsFunc(s.homes, func(home string) bool { return within(f.dir, home) }) {
					f.breaks(spec.Pos(), "%s is spoken to in %s only: %s", p, strings.Join(s.homes, " and "), s.instead)
				}
			}
		}
		if instead, ok := worldly[p]; ok && within(f.dir, "workflows") {
			f.breaks(spec.Pos(), "workflows must not import %s: %s", p, instead)
		}
	}
	ast.Inspect(f.syntax, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok {
				f.selector(n.Pos(), f.imports[x.Name], n.Sel.Name)
			}
		case *ast.GoStmt:
			if within(f.dir, "workflows") {
				f.breaks(n.Pos(), "workflows must not start goroutines: use workflow.Go")
			}
		case *ast.BasicLit:
			if n.Value == `"qemu-img"` && !within(f.dir, "activities/storage") {
				f.breaks(n.Pos(), "qemu-img is run in activities/storage only: it opens files with an explicit format and limits there; add what you need to it")
			}
		}
		return true
	})
	return f.broken
}

// selector looks at a use of pkg.name.
func (f *file) selector(at token.Pos, pkg, name string) {
	for _, c := range callers {
		if c.pkg == pkg && c.name == name && !c.allowed(f.dir) {
			f.breaks(at, "%s must not be called in %s: %s", c.name, f.dir, c.instead)
		}
	}
	if !within(f.dir, "workflows") {
		return
	}
	if pkg == "time" && slices.Contains(clock, name) {
		f.breaks(at, "workflows must not use time.%s: use workflow.Now, workflow.Sleep or workflow.NewTimer", name)
	}
	if slices.Contains(chance, pkg+"."+name) {
		f.breaks(at, "workflows must not make IDs: make them when the request is accepted, or in a step")
	}
}

func TestTheRulesOfTheHouse(t *testing.T) {
	root := filepath.Join("..", "..")
	checked := map[string]int{}
	for _, room := range rooms {
		err := filepath.WalkDir(filepath.Join(root, room), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			src, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(root, path)
			if err != nil {
				return err
			}
			f, err := parse(rel, src)
			if err != nil {
				return err
			}
			checked[room]++
			for _, b := range f.check() {
				t.Error(b)
			}
			return nil
		})
		require.NoError(t, err)
		require.Positive(t, checked[room], "no files were found in %s", room)
	}
}

// TestTheRulesHaveTeeth breaks each rule once.
func TestTheRulesHaveTeeth(t *testing.T) {
	use := func(p string) string { return "package p\nimport _ \"" + p + "\"" }
	for _, c := range []struct{ path, src, want string }{
		{"api/server/x.go", use(module + "workflows/steps"), "imports only point"},
		{"workflows/x.go", use(module + "activities/compute"), "imports only point"},
		{"activities/state/x.go", use(module + "workers/control"), "imports only point"},
		{"workers/node/x.go", use(module + "cli/gnext"), "imports only point"},
		{"workers/node/x.go", use(module + "test/fault"), "not part of a room"},
		{"workers/node/x.go", use("libvirt.org/go/libvirt"), "activities/compute only"},
		{"activities/computer/x.go", use("libvirt.org/go/libvirtxml"), "activities/compute only"},
		{"workers/node/x.go", use("github.com/ovn-kubernetes/libovsdb/client"), "activities/network only"},
		{"activities/state/x.go", use("github.com/bougou/go-ipmi"), "activities/fence only"},
		{"api/admission/x.go", use("go.etcd.io/etcd/client/v3"), "api/store and workers/engine only"},
		{"cli/nextstack/x.go", use("go.temporal.io/server/temporal"), "workers/engine only"},
		{"cli/nextstack/x.go", use("github.com/temporalio/ui-server/v2/server"), "workers/engine only"},
		{"api/accounts/x.go", use("github.com/danielgtaylor/huma/v2"), "api/server only"},
		{"api/fleet/x.go", use("github.com/go-chi/chi/v5"), "api/server only"},
		{"workers/node/x.go", use("github.com/spf13/cobra"), "cli only"},
		{"workflows/x.go", use("net/http"), "must not import net/http"},
		{"workflows/saga/x.go", use("os/exec"), "must not import os/exec"},
		{"workflows/x.go", use("math/rand/v2"), "must not import math/rand/v2"},
		{"workflows/x.go", "package p\nimport \"time\"\nvar x = time.Now()", "must not use time.Now"},
		{"workflows/steps/x.go", "package p\nimport clock \"time\"\nfunc f() { clock.Sleep(1) }", "must not use time.Sleep"},
		{"workflows/x.go", "package p\nfunc f() { go f() }", "must not start goroutines"},
		{"workflows/x.go", "package p\nimport \"" + module + "api\"\nvar x = api.NewID()", "must not make IDs"},
		{"api/server/x.go", "package p\nimport \"" + module + "api/auth\"\nvar h = auth.ControlPlane(\"x\")", "must not be called in api/server"},
		{"api/server/x.go", "package p\nimport a \"" + module + "api/auth\"\nvar h = a.Authenticated", "ask it for a handle"},
		{"workers/node/x.go", "package p\nvar tool = \"qemu-img\"", "activities/storage only"},
	} {
		f, err := parse(c.path, c.src)
		require.NoError(t, err)
		broken := f.check()
		require.Len(t, broken, 1, "%s: %s", c.path, c.src)
		require.Contains(t, broken[0], c.want)
	}
	for _, c := range []struct{ path, src string }{
		{"workers/node/x.go", use(module + "activities/compute")},
		{"activities/compute/libvirt/x.go", use("libvirt.org/go/libvirt")},
		{"activities/fence/x.go", use("github.com/bougou/go-ipmi")},
		{"cli/gnext/x.go", use("github.com/spf13/cobra")},
		{"api/fleet/x.go", "package p\nimport \"" + module + "api/auth\"\nvar h = auth.ControlPlane(\"fleet\")"},
		{"workflows/x.go", "package p\nimport \"time\"\nconst x = time.Second"},
	} {
		f, err := parse(c.path, c.src)
		require.NoError(t, err)
		require.Empty(t, f.check())
	}
}
