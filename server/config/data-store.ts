import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import type { ConfigReader, Key, Spot, Values } from "../../src/runtime/config.ts";
import { duration, flag, ignored, integer, text } from "../../src/runtime/config-keys.ts";
import type { ConfigValue } from "../../src/runtime/config-value.ts";
import { filePath } from "../../src/runtime/program-config.ts";

/** Which store, and how to reach it. */
export type DataStoreConfig =
  | {
      readonly kind: "embedded";
      readonly directory: string;
      /** One line for the log when this isn't what the configuration's words say. */
      readonly notice?: string;
    }
  | {
      readonly kind: "postgres";
      readonly connectionString: string;
      readonly rootCaPath?: string;
      readonly clientCertPath?: string;
      readonly clientKeyPath?: string;
      readonly maxOpenConns?: number;
      readonly maxIdleConns?: number;
      readonly connMaxLifetimeMs?: number;
      readonly disableMigration: boolean;
    };

const PATH = "plugins.DataStore.sql";

/** SPIRE writes `database_type = "postgres"`, or `database_type "aws_postgres" { … }`. */
const databaseType: Key<string | undefined> = {
  type: "string",
  doc: "postgres, or embedded. sqlite3 means the embedded store in that file's folder; mysql is not supported.",
  shownDefault: "embedded",
  status: "works",
  read(value: ConfigValue | undefined, { reader, path, at }: Spot): string | undefined {
    if (value === undefined) return undefined;
    if (value.kind === "string") return value.text;
    const [entry, ...more] = value.kind === "object" ? value.entries : [];
    if (entry === undefined || more.length > 0) reader.fault(at, `${path}: exactly one database type is expected`);
    return entry?.key;
  },
};

/** Keys of `DataStore "sql"`. */
export const dataStoreKeys = {
  database_type: databaseType,
  connection_string: text({
    doc: "How to reach the database: key=value words or a postgres:// URL. For sqlite3 the file.",
  }),
  ro_connection_string: ignored("Read-only database; Steeple answers reads from memory."),
  root_ca_path: filePath({ doc: "CA certificates that the database's certificate is checked with." }),
  client_cert_path: filePath({ doc: "Client certificate for the database." }),
  client_key_path: filePath({ doc: "Private key of the client certificate." }),
  max_open_conns: integer(0, 10_000)({ doc: "Most connections. SPIRE: 100.", shown: "10" }),
  max_idle_conns: integer(0, 10_000)({ doc: "Most idle connections. SPIRE: 100.", shown: "no limit of their own" }),
  conn_max_lifetime: duration(0, "0s")({ doc: "Longest use of one connection.", shown: "unlimited" }),
  disable_migration: flag({ doc: "Leaves the schema alone; start fails when it isn't current.", default: false }),
};

type Settings = Values<typeof dataStoreKeys>;

/** Turns the plug-in's data into a store's configuration; undefined after reporting a fault. */
export function dataStoreConfig(
  settings: Settings | undefined,
  dataDir: string,
  reader: ConfigReader,
): DataStoreConfig | undefined {
  if (settings === undefined) return embedded(dataDir);
  switch (settings.database_type ?? "") {
    case "":
    case "embedded":
      return embedded(dataDir);
    case "sqlite3":
      return insteadOfSqlite(settings.connection_string, dataDir, reader);
    case "postgres":
      return postgres(settings, reader);
    case "mysql":
      return refuse(
        reader,
        'database_type "mysql" is not supported; write database_type = "postgres" with connection_string = "dbname=… user=… password=… host=…", or leave the DataStore out for the embedded store',
      );
    case "aws_postgres":
    case "aws_mysql":
      return refuse(
        reader,
        `database_type "${settings.database_type}" is not supported by this version of Steeple; write database_type = "postgres" with a password in connection_string`,
      );
    default:
      return refuse(reader, `unknown database_type "${settings.database_type}"; use postgres or embedded`);
  }
}

function refuse(reader: ConfigReader, message: string): undefined {
  reader.fault(`${PATH}.database_type`, message);
}

function embedded(folder: string): DataStoreConfig & { readonly kind: "embedded" } {
  return { kind: "embedded", directory: join(folder, "store") };
}

function postgres(settings: Settings, reader: ConfigReader): DataStoreConfig | undefined {
  if (settings.connection_string === undefined) {
    return void reader.fault(`${PATH}.connection_string`, "connection_string must be set");
  }
  if ((settings.client_cert_path === undefined) !== (settings.client_key_path === undefined)) {
    reader.fault(`${PATH}.client_cert_path`, "client_cert_path and client_key_path must be set together");
  }
  return {
    kind: "postgres",
    connectionString: settings.connection_string,
    disableMigration: settings.disable_migration,
    ...(settings.root_ca_path === undefined ? {} : { rootCaPath: settings.root_ca_path }),
    ...(settings.client_cert_path === undefined ? {} : { clientCertPath: settings.client_cert_path }),
    ...(settings.client_key_path === undefined ? {} : { clientKeyPath: settings.client_key_path }),
    ...(settings.max_open_conns === undefined ? {} : { maxOpenConns: settings.max_open_conns }),
    ...(settings.max_idle_conns === undefined ? {} : { maxIdleConns: settings.max_idle_conns }),
    ...(settings.conn_max_lifetime === undefined ? {} : { connMaxLifetimeMs: settings.conn_max_lifetime }),
  };
}

/** Most SPIRE configurations say sqlite3, and most of those have nothing in it yet. */
function insteadOfSqlite(
  connection: string | undefined,
  dataDir: string,
  reader: ConfigReader,
): DataStoreConfig | undefined {
  const file = sqliteFile(connection ?? "");
  const folder = file === undefined ? dataDir : dirname(resolve(file));
  if (file !== undefined && holdsSqliteTables(file)) {
    return refuse(
      reader,
      `the SQLite database ${resolve(file)} holds data that this server would not see; export it with "spire-server entry show -output json" on the old server, move the file away, and import it with "entry create -data"`,
    );
  }
  const store = embedded(folder);
  return {
    ...store,
    notice: `database_type "sqlite3" means the embedded store here: it is kept in ${join(folder, "store")}`,
  };
}

/** The file of a go-sqlite3 connection string; undefined for a database in memory. */
function sqliteFile(connection: string): string | undefined {
  const isUri = connection.startsWith("file:");
  const [path = "", query = ""] = (isUri ? connection.slice("file:".length) : connection).split("?", 2);
  if (path === "" || path === ":memory:" || (isUri && query.split("&").includes("mode=memory"))) return undefined;
  return isUri ? path.replace(/^\/\/(?=\/)/, "") : path;
}

const SQLITE_MAGIC = "SQLite format 3\0";
/** A database without tables is one page at most. */
const EMPTY_SQLITE_BYTES = 4096;

function holdsSqliteTables(path: string): boolean {
  let fd: number;
  try {
    fd = openSync(path, "r");
  } catch {
    return false;
  }
  try {
    const start = Buffer.alloc(SQLITE_MAGIC.length);
    readSync(fd, start, 0, start.length, 0);
    return start.toString("latin1") === SQLITE_MAGIC && fstatSync(fd).size > EMPTY_SQLITE_BYTES;
  } finally {
    closeSync(fd);
  }
}
