package engine

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
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

// databases are Temporal's two: what it has to know, and the list of workflows that the UI shows.
//
// An entry of that list is in some sixty indexes and is written three times per operation. In one file with the rest, each time was
// a transaction of up to 900 KiB for which the operation itself had to wait, since SQLite has one writer.
type databases struct{ history, list *config.SQL }

func databasesIn(dir string) databases {
	// NORMAL is faster than FULL and loses the last transactions when power fails. That must not be of what has happened: it
	// would be forgotten that a disk was already created. But an entry of the list may be old, or missing.
	return databases{history: sqliteConfig(filepath.Join(dir, "temporal.db"), "full"), list: sqliteConfig(filepath.Join(dir, "visibility.db"), "normal")}
}

func (d databases) each(f func(*config.SQL) error) error { return errors.Join(f(d.history), f(d.list)) }

func sqliteConfig(path, synchronous string) *config.SQL {
	return &config.SQL{
		PluginName: sqlite.PluginName,
		// The plugin puts this into a URI as it is, and a '?' or '%' in a directory name would end the path.
		DatabaseName: (&url.URL{Path: path}).EscapedPath(),
		ConnectAttributes: map[string]string{
			// WAL: one fsync per transaction instead of three. FULL: that fsync happens before the transaction counts as done.
			"journal_mode": "wal",
			"synchronous":  synchronous,
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

// prepareSQLite creates the schema and the namespace if they do not exist. Each database has the tables of both: Temporal has no
// other way to make them.
//
// The namespace is written here and not through the API, because a server takes a namespace that was created
// after its start into use only when its cache is refreshed, many seconds later.
func prepareSQLite(ctx context.Context, dbs databases, cluster, namespace string) error {
	err := dbs.each(func(cfg *config.SQL) error {
		if err := withSQLite(cfg, func(db *sql.DB) error { return createSchema(ctx, db) }); err != nil {
			return fmt.Errorf("engine: database of Temporal %s: %w", cfg.DatabaseName, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	ns, err := sqliteschema.NewNamespaceConfig(cluster, namespace, false, nil)
	if err == nil {
		ns.Detail.Config.Retention = durationpb.New(Retention)
		err = sqliteschema.CreateNamespaces(dbs.history, ns)
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
		if err := dropIndexes(ctx, tx); err != nil {
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

// usedIndexes are those of the list of workflows by which it is shown and searched. The other five dozen are mostly on attributes that
// no workflow of ours has; a search by one of them looks at all entries.
var usedIndexes = []string{"default_idx", "by_workflow_id", "by_workflow_type", "by_status"}

func dropIndexes(ctx context.Context, tx *sql.Tx) error {
	rows, err := tx.QueryContext(ctx, "SELECT name FROM sqlite_master WHERE type = 'index' AND tbl_name = 'executions_visibility' AND sql IS NOT NULL")
	if err != nil {
		return err
	}
	defer rows.Close() //nolint:errcheck // was only read
	var drop []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return err
		}
		if !slices.Contains(usedIndexes, name) {
			drop = append(drop, name)
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	for _, name := range drop {
		if _, err := tx.ExecContext(ctx, "DROP INDEX "+name); err != nil {
			return err
		}
	}
	return nil
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

// checkpointSQLite writes the logs into the database files and empties them, so that after a clean stop the two
// files are all there is to copy. It is not needed for durability.
func checkpointSQLite(ctx context.Context, dbs databases) error {
	return dbs.each(func(cfg *config.SQL) error {
		return withSQLite(cfg, func(db *sql.DB) error {
			_, err := db.ExecContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)")
			return err
		})
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
