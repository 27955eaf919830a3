package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/activities/fence"
	"github.com/nextstack/nextstack/activities/network"
	"github.com/nextstack/nextstack/activities/state"
	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/activities/storage/images"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/accounts"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/fleet"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/server"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/cli/trim"
	"github.com/nextstack/nextstack/workers/control"
	"github.com/nextstack/nextstack/workers/engine"
)

func serveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "serve", Short: "Run the control plane", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadConfig(cmd.Flags())
			if err != nil {
				return err
			}
			return serve(cmd.Context(), c)
		},
	}
	flags(cmd.Flags())
	return cmd
}

// shutdownGrace is how long what is under way may take to end.
const shutdownGrace = 10 * time.Second

func serve(ctx context.Context, c config) error {
	log := c.logger()
	if os.Getenv("GOMEMLIMIT") == "" {
		go followMemory(ctx, engine.MemoryLimit)
	}
	listeners, err := listen(c.Listen)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return problem.Caused(err, problem.Invalid, "the data directory cannot be used").Try("choose another with --data-dir")
	}
	join, err := joinToken(c.JoinTokenFile)
	if err != nil {
		return err
	}
	vault, err := store.OpenVault(filepath.Join(c.DataDir, "secret.key"))
	if err != nil {
		return err
	}
	eng, err := engine.Start(ctx, engine.Config{
		DataDir: c.DataDir, EtcdEndpoints: c.EtcdEndpoints, TemporalAddress: c.TemporalAddress, TemporalListen: c.TemporalListen,
		UIListen: c.UIListen, Namespace: c.Namespace, Logger: log,
	})
	if err != nil {
		return err
	}
	defer func() {
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
		defer cancel()
		if err := eng.Stop(ending); err != nil {
			log.Warn("the engine did not stop cleanly", "error", err)
		}
	}()
	return run(ctx, c, log, listeners, eng, vault, join)
}

// run builds the control plane on a started engine and works until ctx is done.
func run(ctx context.Context, c config, log *slog.Logger, listeners []net.Listener, eng *engine.Engine, vault *store.Vault, join string) error {
	kv := store.NewEtcd(eng.Etcd())
	cache := store.NewCache(kv, store.Root)
	who := accounts.New(kv, accounts.Options{JoinToken: join})
	adm := admission.New(kv, vault).Keep(c.KeepDeleted)
	if err := adm.Bootstrap(ctx); err != nil {
		return err
	}
	password, created, err := who.EnsureAdmin(ctx)
	if err != nil {
		return err
	}
	if created {
		fmt.Printf("admin password: %s\n", password)
	}
	ovn := network.NewOVN(c.OVNNorthbound, log)
	stored, err := images.Open(c.DataDir, images.Options{Dirs: c.ImageDirs, MaxSize: c.ImageMaxSize, URLs: c.ImageURLs, FetchTime: c.ImageURLTimeout})
	if err != nil {
		return err
	}
	ui := c.TemporalUI
	if ui == "" {
		ui = eng.UIURL()
	}
	host := &activities.Host{Log: log, Hook: activities.FaultPoints()}
	records := state.New(kv, adm, control.NetworkRows(ovn), control.StoredImages(stored)).Follow(cache).Pack(c.Placement)
	nodes := fleet.New(fleet.Options{
		KV: kv, Cache: cache, Credentials: who, Vault: vault, TemporalAddress: eng.TemporalAddress(), Namespace: eng.Namespace(),
		CPURatio: c.CPURatio, ReservedMemory: c.ReservedMemory, Log: log, SuspectAfter: c.SuspectAfter, Lease: c.Lease,
		Recover: recoverHost(adm), Recoverable: records.Planner().Recoverable, Restart: restartVM(adm),
	})
	worker := control.New(control.Config{
		KV: kv, Temporal: eng.Temporal(), Namespace: eng.Namespace(), UIURL: ui, Hook: host.Hook, Log: log,
		Register: func(reg activities.Registry) {
			records.Register(reg, host)
			network.Register(reg, host, ovn)
			fence.Register(reg, host, kv, vault)
			storage.RegisterControl(reg, host, stored)
		},
	})
	srv := server.New(server.Options{
		KV: kv, Cache: cache, Admission: adm, Engine: worker, Accounts: who, Fleet: nodes, Planner: records.Planner(),
		Version: version, Dir: c.DataDir, ImageFile: func(img *api.Image) string { return filepath.Join(c.DataDir, "images", img.ID) }, Log: log,
		ExportFile: stored.ExportFile,
	})

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { cache.Run(ctx); return nil })
	group.Go(func() error { return who.Run(ctx) })
	group.Go(func() error { return worker.Run(ctx) })
	group.Go(func() error { sweep(ctx, log, nodes, srv, stored, adm); return nil })
	if c.DebugListen != "" {
		group.Go(func() error { return serveProfiles(ctx, c.DebugListen) })
	}
	for _, l := range listeners {
		log.Info("the API listens", "address", l.Addr().String())
		group.Go(func() error { return srv.Serve(ctx, l, shutdownGrace) })
	}
	return group.Wait()
}

// recoverHost begins the recovery of a node that has fallen silent: one for each silence. One that is down is recovered once
// more for each state of its record, which every recovery changes.
func recoverHost(adm *admission.Admission) func(context.Context, *api.Agent) error {
	h := auth.ControlPlane("fleet")
	return func(ctx context.Context, a *api.Agent) error {
		key := "silence/" + a.ID + "/" + a.Status.Observed.UTC().Format(time.RFC3339Nano)
		if a.Status.Phase == api.PhaseDown {
			key = "again/" + a.ID + "/" + strconv.FormatInt(a.Revision, 10)
		}
		_, err := adm.RecoverHost(ctx, h, admission.Options{IdempotencyKey: key}, a.ID, "")
		return err
	}
}

// restartVM starts a VM again that its node has stopped because it had no lease.
func restartVM(adm *admission.Admission) func(context.Context, *api.VM) error {
	h := auth.ControlPlane("fleet")
	return func(ctx context.Context, vm *api.VM) error {
		_, err := adm.StartVM(ctx, h, admission.Options{Project: vm.Project}, vm.ID)
		return err
	}
}

// abandonedAfter is how long an upload that no image was made of is kept, and an export that nobody downloads.
const abandonedAfter = 24 * time.Hour

// emptyBinEvery is how often the recycle bin is looked at.
const emptyBinEvery = time.Minute

// sweep does what is due from time to time: it looks after agents that fall silent, removes abandoned uploads and exports, and
// volumes that have been in the recycle bin for long enough, and once, when the start is over, gives back the memory that only
// the start needed.
func sweep(ctx context.Context, log *slog.Logger, nodes *fleet.Fleet, srv *server.Server, stored *images.Store, adm *admission.Admission) {
	tick := time.NewTicker(fleet.SilentAfter / 4)
	defer tick.Stop()
	trimmed, cleaned, emptied := false, time.Time{}, time.Time{}
	h := auth.ControlPlane("recycle bin")
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			if err := nodes.Sweep(ctx, now); err != nil && ctx.Err() == nil {
				log.Warn("the agents cannot be looked after", "error", err)
			}
			if now.Sub(cleaned) > abandonedAfter/24 {
				cleaned = now
				if _, err := srv.CleanUploads(now, abandonedAfter); err != nil {
					log.Warn("abandoned uploads cannot be removed", "error", err)
				}
				if _, err := stored.CleanExports(now, abandonedAfter); err != nil {
					log.Warn("old exports cannot be removed", "error", err)
				}
			}
			if now.Sub(emptied) >= emptyBinEvery {
				emptied = now
				if _, err := adm.PurgeExpired(ctx, h); err != nil && ctx.Err() == nil {
					log.Warn("volumes that have expired cannot be removed", "error", err)
				}
			}
			if !trimmed {
				trimmed = true
				if err := trim.Code(); err != nil {
					log.Debug("the pages of the start cannot be given back", "error", err)
				}
			}
		}
	}
}

func listen(addresses []string) ([]net.Listener, error) {
	var out []net.Listener
	for _, a := range addresses {
		l, err := net.Listen("tcp", a)
		if err != nil {
			return nil, problem.New(problem.Conflict, "the API cannot listen on %s", a).Because("%v", err).Try("stop what listens there, or choose another address with --listen")
		}
		out = append(out, l)
	}
	return out, nil
}

// joinToken reads the join token, or makes one that only this user can read.
func joinToken(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err == nil {
		token := strings.TrimSpace(string(b))
		if len(token) < 16 {
			return "", problem.New(problem.Invalid, "the join token in %s is too short", path).Try("write at least 16 characters there, or remove the file to have one made")
		}
		return token, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", problem.Wrap(err, problem.Invalid, "the join token cannot be read")
	}
	raw := make([]byte, 24)
	_, _ = rand.Read(raw) // it does not fail: the runtime ends the process instead
	token := base64.RawURLEncoding.EncodeToString(raw)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return "", problem.Wrap(err, problem.Invalid, "the join token cannot be written")
	}
	return token, problem.Wrap(os.WriteFile(path, []byte(token+"\n"), 0o600), problem.Invalid, "the join token cannot be written")
}
