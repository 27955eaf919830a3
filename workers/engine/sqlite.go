package engine

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"go.temporal.io/server/common/config"
	"go.temporal.io/server/common/persistence/sql/sqlplugin"
	"go.temporal.io/server/common/persistence/sql/sqlplugin/sqlite" // registers the driver, too
	sqliteschema "go.temporal.io/server/schema/sqlite"
	"google.golang.org/protobuf/types/known/durationpb"
)

// sqliteBusy is how long a connection waits for another one that writes, in milliseconds: a backup, or the
// last transaction of an engine that was stopped in the same process.
const sqliteBusy = "10000"

// sqliteCheckpointTimeout bounds the checkpoint of a stop; it competes with nobody by then.
const sqliteCheckpointTimeout = 5 * time.Second

// starts tells the starts in one process apart, see sqliteConfig.
var starts atomic.Int64

// sqliteConfig is Temporal's database: one file for history and visibility.
func sqliteConfig(dir string) *config.SQL {
	return &config.SQL{
		PluginName: sqlite.PluginName,
		// The plugin puts this into a URI as it is, and a '?' or '%' in a directory name would end the path.
		DatabaseName: (&url.URL{Path: filepath.Join(dir, "temporal.db")}).EscapedPath(),
		ConnectAttributes: map[string]string{
			// WAL: one fsync per transaction instead of three. FULL: that fsync happens before the transaction
			// counts as done. NORMAL is faster and loses the last transactions when power fails, that is,
			// forgets that a disk was already created.
			"journal_mode": "wal",
			"synchronous":  "full",
			"busy_timeout": sqliteBusy,
			// The plugin keeps connections forever, by these attributes, and would hand a later engine in this
			// process the connection to a file that may have been deleted since. This attribute only has a
			// meaning if it is "true", so any other value makes the connection this engine's own.
			"setup": "no-" + strconv.FormatInt(starts.Add(1), 10),
		},
		// SQLite has one writer. More connections only fail with "database is locked".
		MaxConns:     1,
		MaxIdleConns: 1,
	}
}

// prepareSQLite creates the schema and the namespace if they do not exist.
//
// The namespace is written here and not through the API, because a server takes a namespace that was created
// after its start into use only when its cache is refreshed, many seconds later.
func prepareSQLite(ctx context.Context, cfg *config.SQL, cluster, namespace string) error {
	if err := withSQLite(cfg, func(db *sql.DB) error { return createSchema(ctx, db) }); err != nil {
		return fmt.Errorf("engine: database of Temporal %s: %w", cfg.DatabaseName, err)
	}
	ns, err := sqliteschema.NewNamespaceConfig(cluster, namespace, false, nil)
	if err == nil {
		ns.Detail.Config.Retention = durationpb.New(Retention)
		err = sqliteschema.CreateNamespaces(cfg, ns)
	}
	if err != nil {
		return fmt.Errorf("engine: create Temporal namespace %q: %w", namespace, err)
	}
	return nil
}

// createSchema creates Temporal's tables, all or none: a process that dies in between must not leave half of
// them, which Temporal could neither use nor complete. It also is 60 fsyncs faster.
//
// Temporal does not record the version of its SQLite schema, nor does it upgrade it, so it is recorded here:
// a new Temporal on an old schema has to be refused, not to fail in the middle of an operation.
func createSchema(ctx context.Context, db *sql.DB) error {
	want, err := schemaVersion(sqliteschema.Version, sqliteschema.VisibilityVersion)
	if err != nil {
		return err
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // without effect after Commit
	var have int
	if err := tx.QueryRowContext(ctx, "PRAGMA user_version").Scan(&have); err != nil {
		return err
	}
	switch have {
	case want:
		return nil
	case 0:
		if err := sqliteschema.SetupSchemaOnDB(schemaTx{ctx: ctx, tx: tx}); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, "PRAGMA user_version = "+strconv.Itoa(want)); err != nil {
			return err
		}
		return tx.Commit()
	default:
		return fmt.Errorf("has schema version %d and this nextstack needs %d: run the nextstack that wrote it until all "+
			"operations are finished, then move the directory of the database away; the state of the cloud is in etcd "+
			"and is not touched by that", have, want)
	}
}

// schemaVersion packs Temporal's two versions ("0.11", "0.1") into the one number that an SQLite file holds.
func schemaVersion(main, visibility string) (int, error) {
	v := 0
	for part := range strings.SplitSeq(main+"."+visibility, ".") {
		n, err := strconv.Atoi(part)
		if err != nil || n > 99 {
			return 0, fmt.Errorf("unexpected Temporal schema version %q and %q", main, visibility)
		}
		v = v*100 + n
	}
	return v, nil
}

// schemaTx lets Temporal's schema setup run in a transaction. It uses nothing but Exec.
type schemaTx struct {
	sqlplugin.AdminDB
	ctx context.Context
	tx  *sql.Tx
}

func (s schemaTx) Exec(stmt string, args ...any) error {
	_, err := s.tx.ExecContext(s.ctx, stmt, args...)
	return err
}

// checkpointSQLite writes the log into the database file and empties it, so that after a clean stop the one
// file is all there is to copy. It is not needed for durability.
func checkpointSQLite(ctx context.Context, cfg *config.SQL) error {
	return withSQLite(cfg, func(db *sql.DB) error {
		_, err := db.ExecContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)")
		return err
	})
}

// withSQLite runs f on a connection of its own: Temporal's plugin never closes the ones it opens.
func withSQLite(cfg *config.SQL, f func(*sql.DB) error) error {
	params := url.Values{"_txlock": {"immediate"}}
	for _, pragma := range []string{"busy_timeout", "journal_mode", "synchronous"} {
		params.Add("_pragma", pragma+"="+cfg.ConnectAttributes[pragma])
	}
	db, err := sql.Open("sqlite", "file:"+cfg.DatabaseName+"?"+params.Encode())
	if err != nil {
		return err
	}
	db.SetMaxOpenConns(1)
	return errors.Join(f(db), db.Close())
}
