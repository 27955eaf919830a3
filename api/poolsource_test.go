package api_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

func TestWherePoolsAre(t *testing.T) {
	source := func(name, options string, hosts ...string) api.PoolSource {
		return api.PoolSource{Hosts: hosts, Name: name, Options: options}
	}
	for name, c := range map[string]struct {
		req  api.PoolCreate
		want string // wrong fields; empty: it is fine
	}{
		"directory":                {api.PoolCreate{Type: api.PoolDir, Path: "/vms"}, ""},
		"directory with a server":  {api.PoolCreate{Type: api.PoolDir, Path: "/vms", Source: source("gv0", "soft", "h")}, "source.hosts source.name source.options"},
		"volume":                   {api.PoolCreate{Type: api.PoolGluster, Source: source("gv0", "", "10.0.0.1", "g2.example.org")}, ""},
		"directory of a volume":    {api.PoolCreate{Type: api.PoolGluster, Source: source("gv0/a/b", "", "g1"), Shared: true}, ""},
		"nothing":                  {api.PoolCreate{Type: api.PoolGluster}, "source.hosts source.name"},
		"all wrong":                {api.PoolCreate{Type: api.PoolGluster, Path: "/vms", Source: source("gv0/../x", "ro", "a b", "a b", "fd00::1")}, "path source.hosts[0] source.hosts[1] source.hosts[1] source.name source.hosts[2] source.options"},
		"volume that is an option": {api.PoolCreate{Type: api.PoolGluster, Source: source("-o", "", "g1")}, "source.name"},
		"host that is an option":   {api.PoolCreate{Type: api.PoolGluster, Source: source("gv0", "", "-oProxy")}, "source.hosts[0]"},
		"export":                   {api.PoolCreate{Type: api.PoolNFS, Source: source("/srv/vms", "vers=4.2,nconnect=4,noatime", "nas")}, ""},
		"export by IPv6":           {api.PoolCreate{Type: api.PoolNFS, Source: source("/", "", "fd00::1")}, ""},
		"two servers":              {api.PoolCreate{Type: api.PoolNFS, Source: source("/srv", "", "a", "b")}, "source.hosts"},
		"relative export":          {api.PoolCreate{Type: api.PoolNFS, Source: source("srv", "", "a")}, "source.name"},
		"options that are none":    {api.PoolCreate{Type: api.PoolNFS, Source: source("/srv", "vers=4 -o exec", "a")}, "source.options"},
		"unsafe options":           {api.PoolCreate{Type: api.PoolNFS, Source: source("/srv", "soft,nolock,local_lock=flock,ro", "a")}, "source.options source.options source.options source.options"},
		"other type":               {api.PoolCreate{Type: "zfs", Source: api.PoolSource{User: "x"}}, "type source.user"},
	} {
		t.Run(name, func(t *testing.T) {
			c.req.Name = "p"
			err := c.req.Validate()
			var fields []string
			if err != nil {
				require.Equal(t, problem.Invalid, problem.KindOf(err))
				for _, f := range problem.From(err).Fields {
					fields = append(fields, f.Path)
				}
			}
			require.Equal(t, c.want, strings.Join(fields, " "), "%v", err)
		})
	}
}
