package command

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// cephFlags adds what says where a pool of a Ceph cluster is.
func (a *app) cephFlags(add *cobra.Command, r *api.PoolCreate) {
	var monitors []string
	var pool, user, keyFile string
	fl := add.Flags()
	fl.StringSliceVar(&monitors, "monitors", nil, "of --type rbd: monitors of the Ceph cluster, as HOST or HOST:PORT")
	fl.StringVar(&pool, "ceph-pool", "", "of --type rbd: Ceph pool, which is empty and for this pool alone")
	fl.StringVar(&user, "ceph-user", "", "of --type rbd: user of the cluster, without client., who may use that Ceph pool (profile rbd)")
	fl.StringVar(&keyFile, "ceph-key-file", "", "of --type rbd: file with the key of that user, as ceph auth print-key prints it; - is stdin")
	must(add.MarkFlagFilename("ceph-key-file"))
	plain := add.RunE
	add.RunE = func(cmd *cobra.Command, args []string) error {
		given := len(monitors) > 0 || pool != "" || user != "" || keyFile != ""
		if r.Type != api.PoolRBD {
			if given {
				return problem.New(problem.Invalid, "--monitors, --ceph-pool, --ceph-user and --ceph-key-file are for pools of Ceph").Try("give --type %s", api.PoolRBD)
			}
			return plain(cmd, args)
		}
		if keyFile == "" {
			return problem.New(problem.Invalid, "a pool of type %s needs a key", api.PoolRBD).
				Because("a key on the command line could be read by others").Try("write it into a file: ceph auth print-key client.%s > F; and give --ceph-key-file F", orWord(user, "USER"))
		}
		b, err := readInput(keyFile, cmd.InOrStdin(), api.KiB)
		if err != nil {
			return err
		}
		r.Source = api.PoolSource{Hosts: monitors, Name: pool, User: strings.TrimPrefix(user, "client.")}
		r.Key = strings.TrimSpace(string(b))
		return plain(cmd, args)
	}
}

func orWord(s, word string) string {
	if s == "" {
		return word
	}
	return s
}
