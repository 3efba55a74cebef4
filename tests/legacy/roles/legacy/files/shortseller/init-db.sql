-- Multi-asset short seller: trading database, created on the first start of
-- the PostgreSQL container.

CREATE SCHEMA IF NOT EXISTS trading;

CREATE TABLE IF NOT EXISTS trading.trades (
    id SERIAL PRIMARY KEY,
    symbol VARCHAR(20) NOT NULL,
    side VARCHAR(10) NOT NULL,
    quantity DECIMAL(20,8) NOT NULL,
    price DECIMAL(20,8) NOT NULL,
    order_id VARCHAR(100) UNIQUE,
    exchange_order_id VARCHAR(100),
    status VARCHAR(20) NOT NULL DEFAULT 'pending',
    strategy VARCHAR(50) NOT NULL DEFAULT 'ema_crossover',
    timestamp TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    executed_at TIMESTAMPTZ,
    pnl DECIMAL(20,8) DEFAULT 0,
    fees DECIMAL(20,8) DEFAULT 0,
    notes TEXT
);

CREATE TABLE IF NOT EXISTS trading.positions (
    id SERIAL PRIMARY KEY,
    symbol VARCHAR(20) NOT NULL,
    side VARCHAR(10) NOT NULL,
    size DECIMAL(20,8) NOT NULL,
    avg_price DECIMAL(20,8) NOT NULL,
    unrealized_pnl DECIMAL(20,8) DEFAULT 0,
    realized_pnl DECIMAL(20,8) DEFAULT 0,
    status VARCHAR(20) NOT NULL DEFAULT 'open',
    opened_at TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    closed_at TIMESTAMPTZ,
    stop_loss DECIMAL(20,8),
    take_profit DECIMAL(20,8),
    leverage INTEGER DEFAULT 1
);

CREATE TABLE IF NOT EXISTS trading.market_data (
    id SERIAL PRIMARY KEY,
    symbol VARCHAR(20) NOT NULL,
    timestamp TIMESTAMPTZ NOT NULL,
    open_price DECIMAL(20,8) NOT NULL,
    high_price DECIMAL(20,8) NOT NULL,
    low_price DECIMAL(20,8) NOT NULL,
    close_price DECIMAL(20,8) NOT NULL,
    volume DECIMAL(20,8) NOT NULL,
    interval VARCHAR(10) NOT NULL,
    created_at TIMESTAMPTZ DEFAULT NOW(),
    UNIQUE (symbol, timestamp, interval)
);

CREATE TABLE IF NOT EXISTS trading.signals (
    id SERIAL PRIMARY KEY,
    symbol VARCHAR(20) NOT NULL,
    signal_type VARCHAR(20) NOT NULL,
    strength DECIMAL(5,4),
    price DECIMAL(20,8) NOT NULL,
    timestamp TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    strategy VARCHAR(50) NOT NULL DEFAULT 'ema_crossover',
    indicators JSONB,
    executed BOOLEAN DEFAULT FALSE,
    execution_id INTEGER REFERENCES trading.trades(id)
);

CREATE TABLE IF NOT EXISTS trading.account_balance (
    id SERIAL PRIMARY KEY,
    total_balance DECIMAL(20,8) NOT NULL,
    available_balance DECIMAL(20,8) NOT NULL,
    equity DECIMAL(20,8) NOT NULL,
    margin_used DECIMAL(20,8) DEFAULT 0,
    unrealized_pnl DECIMAL(20,8) DEFAULT 0,
    timestamp TIMESTAMPTZ NOT NULL DEFAULT NOW()
);

CREATE TABLE IF NOT EXISTS trading.risk_metrics (
    id SERIAL PRIMARY KEY,
    date DATE NOT NULL UNIQUE,
    total_pnl DECIMAL(20,8) DEFAULT 0,
    max_drawdown DECIMAL(10,4) DEFAULT 0,
    win_rate DECIMAL(5,4) DEFAULT 0,
    profit_factor DECIMAL(10,4) DEFAULT 0,
    sharpe_ratio DECIMAL(10,4) DEFAULT 0,
    total_trades INTEGER DEFAULT 0,
    winning_trades INTEGER DEFAULT 0,
    losing_trades INTEGER DEFAULT 0
);

CREATE INDEX IF NOT EXISTS idx_trades_symbol_timestamp ON trading.trades (symbol, timestamp);
CREATE INDEX IF NOT EXISTS idx_trades_status ON trading.trades (status);
CREATE INDEX IF NOT EXISTS idx_positions_status ON trading.positions (status);
CREATE INDEX IF NOT EXISTS idx_market_data_symbol_timestamp ON trading.market_data (symbol, timestamp);
CREATE INDEX IF NOT EXISTS idx_signals_symbol_timestamp ON trading.signals (symbol, timestamp);
CREATE INDEX IF NOT EXISTS idx_account_balance_timestamp ON trading.account_balance (timestamp);

CREATE OR REPLACE VIEW trading.active_positions AS
SELECT symbol, side, size, avg_price, unrealized_pnl, opened_at, leverage
FROM trading.positions
WHERE status = 'open';

CREATE OR REPLACE VIEW trading.daily_performance AS
SELECT DATE(timestamp) AS trade_date,
       COUNT(*) AS total_trades,
       SUM(pnl) AS total_pnl,
       COUNT(*) FILTER (WHERE pnl > 0) AS winning_trades,
       COUNT(*) FILTER (WHERE pnl < 0) AS losing_trades
FROM trading.trades
WHERE status = 'filled'
GROUP BY DATE(timestamp);

INSERT INTO trading.account_balance (total_balance, available_balance, equity)
VALUES (10000, 10000, 10000);

GRANT ALL PRIVILEGES ON SCHEMA trading TO trading_user;
GRANT ALL PRIVILEGES ON ALL TABLES IN SCHEMA trading TO trading_user;
GRANT ALL PRIVILEGES ON ALL SEQUENCES IN SCHEMA trading TO trading_user;
